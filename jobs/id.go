package jobs

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"sync"
	"time"
)

// lastID keeps this process's ids in order: the millisecond and a counter in the bits below it.
var lastID struct {
	sync.Mutex
	ms  uint64
	seq uint16
}

// NewID gives a UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then 12 bits that grow within a millisecond, then randomness.
// The ids of one process sort in the order in which they were made.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	ms, seq := nextID(uint64(time.Now().UnixMilli()), binary.BigEndian.Uint16(b[6:])&0x7ff)
	binary.BigEndian.PutUint64(b[:8], ms<<16|0x7000|uint64(seq))
	b[8] = b[8]&0x3f | 0x80
	return formatUUID(b)
}

func nextID(ms uint64, start uint16) (uint64, uint16) {
	l := &lastID
	l.Lock()
	defer l.Unlock()
	switch {
	case ms > l.ms:
		l.ms, l.seq = ms, start
	case l.seq < 0xfff:
		l.seq++
	default:
		l.ms, l.seq = l.ms+1, start
	}
	return l.ms, l.seq
}

func formatUUID(b [16]byte) string {
	var s [36]byte
	hex.Encode(s[0:8], b[0:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:36], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}

var errID = errors.New("not a UUIDv7 in lower case (019a2b3c-4d5e-7f60-8123-456789abcdef)")

// ParseID checks that s is a UUIDv7 as NewID writes it, and gives the time in it.
func ParseID(s string) (time.Time, error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return time.Time{}, errID
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return time.Time{}, errID
		}
	}
	b, err := hex.DecodeString(s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:])
	if err != nil || b[6]>>4 != 7 || b[8]>>6 != 2 {
		return time.Time{}, errID
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:8]) >> 16)).UTC(), nil
}
