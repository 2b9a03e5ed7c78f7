"""StoredPicture quality: how near an encoded file is to its source."""
