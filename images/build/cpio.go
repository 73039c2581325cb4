package build

import (
	"bufio"
	"fmt"
)

// cpio writes an archive in the format "newc" that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst),
// the same for the same content. The first error stays and close gives it.
type cpio struct {
	w     *bufio.Writer
	inode int
	off   int
	err   error
}

const (
	modeDir  = 0o040755
	modeFile = 0o100000
	modeChar = 0o020600
)

func (c *cpio) dir(name string)                        { c.entry(name, modeDir, nil, 0, 0) }
func (c *cpio) file(name string, mode int, b []byte)   { c.entry(name, modeFile|mode, b, 0, 0) }
func (c *cpio) node(name string, major int, minor int) { c.entry(name, modeChar, nil, major, minor) }

func (c *cpio) entry(name string, mode int, b []byte, major, minor int) {
	c.inode++
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(b), 0, 0, major, minor, len(name)+1, 0, name))
	c.pad()
	c.write(b)
	c.pad()
}

func (c *cpio) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
		c.off += len(b)
	}
}

func (c *cpio) pad() { c.write(make([]byte, -c.off&3)) }

// close ends the archive.
func (c *cpio) close() error {
	c.inode = -1
	c.entry("TRAILER!!!", 0, nil, 0, 0)
	c.write(make([]byte, -c.off&511))
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}
