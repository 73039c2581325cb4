package build

import (
	"bufio"
	"io"
)

// Entry is an entry of an archive, for tests.
type Entry struct {
	Name         string
	Mode         int // with its kind
	Major, Minor int
	Data         []byte
}

// WriteCPIO writes an archive with all three kinds of entries.
func WriteCPIO(w io.Writer, entries []Entry) error {
	c := &cpio{w: bufio.NewWriterSize(w, 16)}
	for _, e := range entries {
		switch e.Mode {
		case modeDir:
			c.dir(e.Name)
		case modeChar:
			c.node(e.Name, e.Major, e.Minor)
		default:
			c.file(e.Name, e.Mode&^modeFile, e.Data)
		}
	}
	return c.close()
}

// PackModules writes the archive of a module tree.
var PackModules = packModules
