package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Layer is a checkpoint's directory and the names of its files, indexes left out.
type Layer struct {
	Dir   string
	Files []string
}

// Flatten makes in dir what the last layer's machine was made of: each of its files whole. base gives the file that the first layer's delta
// of that name is of; it is not asked for files that some layer has whole. Layers go from parent to child. Files become read-only.
func Flatten(dir string, base func(name string) string, layers []Layer) error {
	top := layers[len(layers)-1]
	for _, name := range top.Files {
		if err := flatten(filepath.Join(dir, name), name, base, layers); err != nil {
			return fmt.Errorf("flatten %s: %w", name, err)
		}
	}
	return hostfile.SyncDir(dir)
}

func flatten(to, name string, base func(name string) string, layers []Layer) error {
	var deltas []string // from the child up
	whole := ""
	for i := len(layers) - 1; i >= 0 && whole == ""; i-- {
		path := filepath.Join(layers[i].Dir, name)
		_, err := os.Stat(path + IndexSuffix)
		switch {
		case errors.Is(err, os.ErrNotExist):
			whole = path
		case err != nil:
			return err
		default:
			deltas = append(deltas, path)
		}
	}
	if whole == "" {
		whole = base(name)
	}
	return hostfile.WriteOnce(to, func(dst *os.File) error {
		if err := copyFile(dst, whole); err != nil {
			return err
		}
		for i := len(deltas) - 1; i >= 0; i-- {
			if err := apply(dst, deltas[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// apply writes a delta's blocks into dst.
func apply(dst *os.File, delta string) error {
	x, err := ReadIndex(delta + IndexSuffix)
	if err != nil {
		return err
	}
	src, err := os.Open(delta)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := dst.Stat()
	if err != nil {
		return err
	}
	if info.Size() != x.Size {
		return fmt.Errorf("%s is of a file of %d bytes, and its base has %d", delta, x.Size, info.Size())
	}
	buf := make([]byte, chunk)
	for _, e := range x.Extents {
		start, end := e.First*Block, min((e.First+e.Count)*Block, x.Size)
		if err := unix.Fallocate(int(dst.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, end-start); err != nil {
			if err := writeZeros(dst, start, end); err != nil {
				return err
			}
		}
		for off := start; off < end; {
			data := min(nextData(src, off), end)
			if data >= end {
				break
			}
			n := min(end-data, chunk)
			if hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE); err == nil {
				n = min(n, hole-data)
			}
			if err := readAt(src, buf[:n], data); err != nil {
				return err
			}
			if _, err := dst.WriteAt(buf[:n], data); err != nil {
				return err
			}
			off = data + n
		}
	}
	return nil
}

// writeZeros is for file systems that punch no holes.
func writeZeros(dst *os.File, start, end int64) error {
	for off := start; off < end; off += Block {
		if _, err := dst.WriteAt(zeros[:min(Block, end-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// copyFile makes dst, an empty file, equal to the file at path: by sharing its blocks where the file system can, else without its holes.
func copyFile(dst *os.File, path string) error {
	src, err := os.Open(path)
	if err != nil {
		return err
	}
	defer src.Close()
	return hostfile.CopySparse(dst, src)
}
