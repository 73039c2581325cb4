package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Part is a file by its content.
type Part struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	// Sparse says that the digest is of the blocks that are not all zero, each after its number: a disk that is mostly holes is
	// hashed in the time of what it holds.
	Sparse bool `json:"sparse,omitempty"`
}

const blockSize = 4096

// PartOf hashes a file.
func PartOf(name string) (Part, error) { return partOf(name, hashBytes) }

// SparsePartOf hashes a file of which only the blocks that are not zero count.
func SparsePartOf(name string) (Part, error) {
	p, err := partOf(name, hashBlocks)
	p.Sparse = true
	return p, err
}

func partOf(name string, hash func(h io.Writer, f *os.File, size int64) error) (Part, error) {
	f, st, err := openRegular(name)
	if err != nil {
		return Part{}, err
	}
	defer f.Close()
	h := sha256.New()
	if err := hash(h, f, st.Size()); err != nil {
		return Part{}, fmt.Errorf("hash %s: %w", name, err)
	}
	return Part{SHA256: hex.EncodeToString(h.Sum(nil)), Size: st.Size()}, nil
}

// openRegular opens a file to read. Whatever else stands in its place is a *CorruptError: a pipe would have its reader wait, a device give him bytes
// without an end.
func openRegular(name string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) { // a socket's
		return nil, nil, &CorruptError{File: name, Is: os.ModeSocket}
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &CorruptError{File: name, Is: info.Mode().Type()}
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// readRegular is os.ReadFile of what openRegular opens.
func readRegular(name string) ([]byte, error) {
	f, _, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func hashBytes(h io.Writer, f *os.File, _ int64) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return err
}

var zeroBlock [blockSize]byte

// hashBlocks writes the blocks that are not zero, each after its number; holes are not even read.
func hashBlocks(h io.Writer, f *os.File, size int64) error {
	buf := make([]byte, 256*blockSize)
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only holes follow
		}
		if err != nil {
			data = off // a file system that knows no holes
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			end = size
		}
		for data -= data % blockSize; data < end; {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), size-data)], data)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if n == 0 {
				break
			}
			hashChunk(h, buf[:n], data)
			data += int64(n)
		}
		off = max(data, end)
	}
	return nil
}

func hashChunk(h io.Writer, b []byte, off int64) {
	for i := 0; i < len(b); i += blockSize {
		block := b[i:min(i+blockSize, len(b))]
		if bytes.Equal(block, zeroBlock[:len(block)]) {
			continue
		}
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64((off+int64(i))/blockSize))
		_, _ = h.Write(n[:]) // a hash takes everything
		_, _ = h.Write(block)
	}
}

// Check tells whether a file still is what it was.
func (p Part) Check(name string) error {
	hash := PartOf
	if p.Sparse {
		hash = SparsePartOf
	}
	got, err := hash(name)
	if err != nil {
		return err
	}
	if got != p {
		return &CorruptError{File: name, Want: p, Got: got}
	}
	return nil
}

// CorruptError is a file whose content is not what its name or manifest says.
type CorruptError struct {
	File      string
	Want, Got Part
	Is        os.FileMode // what stands in its place that is no file; 0: a file
}

func (e *CorruptError) Error() string {
	if e.Is != 0 {
		return fmt.Sprintf("%s is corrupt: no file stands there, but %s", e.File, kinds[e.Is])
	}
	return fmt.Sprintf("%s is corrupt: %d bytes with sha256 %.12s…, should be %d bytes with %.12s…", e.File, e.Got.Size, e.Got.SHA256, e.Want.Size, e.Want.SHA256)
}

// kinds are what may stand in a file's place.
var kinds = map[os.FileMode]string{
	os.ModeDir: "a directory", os.ModeNamedPipe: "a pipe", os.ModeSocket: "a socket", os.ModeDevice: "a device", os.ModeDevice | os.ModeCharDevice: "a device",
}
