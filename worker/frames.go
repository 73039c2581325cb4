package worker

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/paddockvm/paddock/jobs"
)

// Events on disk are frames: two lengths of four bytes, big endian, the event's JSON without its content, and the content as it is. As JSON
// a program's output could be six times as long.

// maxFrame bounds each part of a frame that is read back: a torn file does not have gigabytes allocated.
const maxFrame = 1 << 20

// appendFrame appends an event's frame to b.
func appendFrame(b []byte, q *queued) ([]byte, error) {
	meta, err := json.Marshal(q.Event)
	if err != nil {
		return b, fmt.Errorf("encode event: %w", err)
	}
	if len(meta) > maxFrame || len(q.raw) > maxFrame {
		return b, fmt.Errorf("an event of %d and %d bytes", len(meta), len(q.raw))
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(meta)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(q.raw)))
	return append(append(b, meta...), q.raw...), nil
}

// frames reads events back.
type frames struct{ r *bufio.Reader }

func framesOf(r io.Reader) frames { return frames{bufio.NewReaderSize(r, 2*chunkBytes)} }

// next gives the next event; io.EOF after the last.
func (f frames) next() (e jobs.Event, err error) {
	var head [8]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return e, err // io.EOF between two frames
	}
	meta, raw := binary.BigEndian.Uint32(head[:4]), binary.BigEndian.Uint32(head[4:])
	if meta > maxFrame || raw > maxFrame {
		return e, fmt.Errorf("an event of %d and %d bytes", meta, raw)
	}
	b := make([]byte, meta+raw)
	if _, err := io.ReadFull(f.r, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return e, err
	}
	if err := json.Unmarshal(b[:meta], &e); err != nil {
		return e, fmt.Errorf("decode event: %w", err)
	}
	e.Content = jobs.ContentOf(b[meta:])
	return e, nil
}

// batch gives the next events, about as many bytes as wait in memory; io.EOF after the last.
func (f frames) batch() (l []jobs.Event, err error) {
	for size := 0; size < pendingBytes; {
		e, err := f.next()
		if errors.Is(err, io.EOF) && len(l) > 0 {
			break
		}
		if err != nil {
			return l, err
		}
		l = append(l, e)
		size += e.Len() + eventBytes
	}
	return l, nil
}
