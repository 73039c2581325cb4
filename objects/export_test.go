package objects

// SetRoom gives uploads less of the disk, before the first one comes.
func (u *Uploads) SetRoom(n int64) { u.room = n }
