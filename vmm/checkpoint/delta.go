package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// chunk is how much is read at once.
const chunk = 1 << 20

// Delta writes the blocks of a file that differ from a base. It is used by one goroutine.
type Delta struct {
	dir, name string
	base, dst *os.File
	index     Index
	buf, old  []byte
}

// NewDelta makes the file name in dir, of which base is the old content, in size bytes. base stays the caller's, and open until Close.
func NewDelta(dir, name string, base *os.File, size int64) (*Delta, error) {
	dst, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := dst.Truncate(size); err != nil {
		_ = dst.Close()
		return nil, err
	}
	return &Delta{dir: dir, name: name, base: base, dst: dst, index: Index{Size: size}, buf: make([]byte, chunk), old: make([]byte, chunk)}, nil
}

// Put gives the content of some blocks from first on; the last may be a part of one where the file ends in it. Each block is given once.
func (d *Delta) Put(first int64, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), chunk)
		if err := readAt(d.base, d.old[:n], first*Block); err != nil {
			return err
		}
		if err := d.put(first, data[:n], d.old[:n]); err != nil {
			return err
		}
		data, first = data[n:], first+int64(n/Block)
	}
	return nil
}

// put compares, and writes runs of changed blocks.
func (d *Delta) put(first int64, data, old []byte) error {
	run := -1 // where the changed blocks not yet written begin
	flush := func(end int) error {
		if run < 0 {
			return nil
		}
		_, err := d.dst.WriteAt(data[run:end], first*Block+int64(run))
		run = -1
		return err
	}
	for i := 0; i < len(data); i += Block {
		now, then := data[i:min(i+Block, len(data))], old[i:min(i+Block, len(old))]
		changed := !bytes.Equal(now, then)
		if changed {
			d.index.add(first + int64(i/Block))
		}
		switch {
		case !changed || bytes.Equal(now, zeros[:len(now)]): // what became zero is in the index, and a hole
			if err := flush(i); err != nil {
				return err
			}
		case run < 0:
			run = i
		}
	}
	return flush(len(data))
}

var zeros [Block]byte

// Compare puts all of a file that is the new content, but for the blocks that skip tells to pass over; holes that both have are not read.
func (d *Delta) Compare(now *os.File, skip func(block int64) bool) error {
	for off := int64(0); off < d.index.Size; {
		next := min(nextData(now, off), nextData(d.base, off), d.index.Size)
		if off = next - next%Block; off >= d.index.Size {
			return nil
		}
		n := int(min(chunk, d.index.Size-off))
		if err := errors.Join(readAt(now, d.buf[:n], off), readAt(d.base, d.old[:n], off)); err != nil {
			return err
		}
		if skip != nil {
			for i := 0; i < n; i += Block {
				if skip(off/Block + int64(i/Block)) {
					copy(d.buf[i:min(i+Block, n)], d.old[i:])
				}
			}
		}
		if err := d.put(off/Block, d.buf[:n], d.old[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// nextData gives where the next data is from off on: off itself on file systems that know no holes, far away where there is none.
func nextData(f *os.File, off int64) int64 {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 1<<63 - 1
	}
	if err != nil {
		return off
	}
	return at
}

// readAt fills b; what lies behind the file's end is zero.
func readAt(f *os.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		clear(b[n:])
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return nil
}

// Finish makes the delta durable and read-only, writes its index and gives how many bytes differed.
func (d *Delta) Finish() (int64, error) {
	d.index.sort()
	if err := errors.Join(d.dst.Chmod(0o444), d.dst.Sync()); err != nil {
		return 0, err
	}
	return d.index.Bytes(), d.index.write(filepath.Join(d.dir, d.name+IndexSuffix))
}

// Close lets go of the file. It may be called after Finish.
func (d *Delta) Close() error { return d.dst.Close() }
