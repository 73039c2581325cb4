package wire

import "encoding/binary"

// inbox is the data that came for a stream and that nobody has taken yet, oldest first. It is one run of bytes, each chunk behind its
// channel and length: a guest that sends its window in frames of one byte costs three bytes for each, not a slice and its header.
type inbox struct {
	log   []byte
	taken int // of log
	size  int // of the chunks' bytes
}

func (b *inbox) empty() bool { return b.taken == len(b.log) }

// put adds a chunk. It copies data.
func (b *inbox) put(ch Channel, data []byte) {
	if b.taken > len(b.log)/2 { // move what waits to the front rather than grow
		b.log = append(b.log[:0], b.log[b.taken:]...)
		b.taken = 0
	}
	b.log = binary.AppendUvarint(append(b.log, byte(ch)), uint64(len(data)))
	b.log = append(b.log, data...)
	b.size += len(data)
}

// take removes the oldest chunk, which is the caller's. The inbox must not be empty.
func (b *inbox) take() (Channel, []byte) {
	ch := Channel(b.log[b.taken])
	n, width := binary.Uvarint(b.log[b.taken+1:])
	from := b.taken + 1 + width
	data := append([]byte(nil), b.log[from:from+int(n)]...)
	b.taken = from + int(n)
	b.size -= len(data)
	return ch, data
}
