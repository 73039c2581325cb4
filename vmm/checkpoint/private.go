package checkpoint

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Private is the memory that a process has written in its private mapping of a file: copy-on-write made those pages its own, and all
// others still are the file's.
type Private struct {
	// Extents are the pages by their place in the file, in rising order.
	Extents []Extent
	// Data are their contents, one after the other.
	Data []byte
}

// mapping is a part of a file in a process's memory.
type mapping struct {
	address uintptr
	offset  int64 // in the file
	length  int64
}

// Memory is a process's private mapping of a file.
type Memory struct {
	pid  int
	maps []mapping
	buf  []byte // for Data, of pages that are there already
}

// OpenMemory finds the private mapping of file in the process pid, which has to cover all of its size bytes. It needs to be allowed to
// trace the process (ptrace(2), PTRACE_MODE_ATTACH).
func OpenMemory(pid int, file *os.File, size int64) (*Memory, error) {
	id, err := identify(file)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", file.Name(), err)
	}
	maps, err := mappings(pid, func(l line) bool { return l.private && l.file == id })
	if err != nil {
		return nil, fmt.Errorf("read the mappings of process %d: %w", pid, err)
	}
	at := int64(0)
	for _, m := range maps {
		if m.offset != at {
			break
		}
		at += m.length
	}
	if at != size {
		return nil, fmt.Errorf("process %d has mapped %d of %d bytes of its memory", pid, at, size)
	}
	return &Memory{pid: pid, maps: maps}, nil
}

// line is what /proc/PID/maps tells of a mapping (proc_pid_maps(5)).
type line struct {
	mapping
	private bool
	file    string // device and inode
}

// identify gives a file as its mappings are named. stat(2) may tell of another device: it does on btrfs, and on overlayfs with older kernels.
func identify(file *os.File) (string, error) {
	at, err := unix.MmapPtr(int(file.Fd()), 0, nil, Block, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return "", err
	}
	own := ""
	_, err = mappings(os.Getpid(), func(l line) bool {
		if l.address == uintptr(at) {
			own = l.file
		}
		return false
	})
	return own, errors.Join(err, unix.MunmapPtr(at, Block))
}

// mappings gives those of a process that are wanted, by their offset.
func mappings(pid int, want func(line) bool) (l []mapping, err error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); ; {
		if !s.Scan() {
			slices.SortFunc(l, func(a, b mapping) int { return int((a.offset - b.offset) / Block) })
			return l, s.Err()
		}
		field := strings.Fields(s.Text())
		if len(field) < 5 {
			continue
		}
		var start, end uintptr
		var offset int64
		if _, err := fmt.Sscanf(field[0]+" "+field[2], "%x-%x %x", &start, &end, &offset); err != nil {
			return nil, err
		}
		if m := (mapping{start, offset, int64(end - start)}); want(line{m, strings.HasSuffix(field[1], "p"), field[3] + " " + field[4]}) {
			l = append(l, m)
		}
	}
}

// Bits of an entry of /proc/PID/pagemap (kernel: Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapPresent = 1 << 63
	pagemapSwapped = 1 << 62
	pagemapFile    = 1 << 61 // a page of a file, or shared
)

// private gives the pages that are the process's own.
func (m *Memory) private() ([]Extent, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(m.pid) + "/pagemap")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var x Index
	entries := make([]byte, 64<<10)
	for _, mapped := range m.maps {
		for done := int64(0); done < mapped.length; {
			n := min(int64(len(entries)/8), (mapped.length-done)/Block)
			if _, err := f.ReadAt(entries[:n*8], (int64(mapped.address)+done)/Block*8); err != nil {
				return nil, fmt.Errorf("read the page map of process %d: %w", m.pid, err)
			}
			for i := range n {
				e := binary.NativeEndian.Uint64(entries[i*8:])
				if e&(pagemapPresent|pagemapSwapped) != 0 && e&pagemapFile == 0 {
					x.add((mapped.offset+done)/Block + i)
				}
			}
			done += n * Block
		}
	}
	return x.Extents, nil
}

// slack is how many pages may become private between Reserve and Read before Read has to make room, which takes time.
const slack = 8 << 20 / Block

// Reserve makes room for what Read will read, while the process still runs: the time to come by memory is not the machine's to wait for.
func (m *Memory) Reserve() error {
	extents, err := m.private()
	if err != nil {
		return err
	}
	return m.room(blocks(extents) + slack)
}

func (m *Memory) room(pages int64) (err error) {
	if int64(len(m.buf)) >= pages*Block {
		return nil
	}
	m.Close()
	m.buf, err = unix.Mmap(-1, 0, int(pages*Block), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("make room for %d MiB of memory: %w", pages*Block>>20, err)
	}
	return nil
}

// Read reads the process's own pages. Nothing may run in it that writes there. What it gives is good until Close.
func (m *Memory) Read() (*Private, error) {
	extents, err := m.private()
	if err != nil {
		return nil, err
	}
	n := blocks(extents)
	if err := m.room(n); err != nil {
		return nil, err
	}
	p := &Private{Extents: extents, Data: m.buf[:n*Block]}
	if err := m.read(p); err != nil {
		return nil, fmt.Errorf("read the memory of process %d: %w", m.pid, err)
	}
	return p, nil
}

// maxReaders is how many threads read at once: the machine waits for them, and more do not make memory faster.
const maxReaders = 4

// read reads all extents, in equal parts.
func (m *Memory) read(p *Private) error {
	n := min(maxReaders, runtime.GOMAXPROCS(0))
	errs := make([]error, n)
	total := blocks(p.Extents)
	var reading sync.WaitGroup
	for i := range n {
		from, to := total*int64(i)/int64(n), total*int64(i+1)/int64(n)
		reading.Go(func() { errs[i] = m.readPart(cut(p.Extents, from, to), p.Data[from*Block:to*Block]) })
	}
	reading.Wait()
	return errors.Join(errs...)
}

// cut gives the extents of the blocks from the from-th to before the to-th.
func cut(extents []Extent, from, to int64) (part []Extent) {
	at := int64(0)
	for _, e := range extents {
		first, end := max(from-at, 0), min(to-at, e.Count)
		if first < end {
			part = append(part, Extent{e.First + first, end - first})
		}
		at += e.Count
	}
	return part
}

const (
	// maxVectors is how many pieces one call takes (UIO_MAXIOV), maxBytes how much: it gives less than it is asked for where that is much.
	maxVectors = 1024
	maxBytes   = 16 << 20
)

// readPart reads extents by process_vm_readv(2), many at once.
func (m *Memory) readPart(extents []Extent, to []byte) error {
	var from []unix.RemoteIovec
	pending := 0
	flush := func() error {
		if pending == 0 {
			return nil
		}
		n, err := unix.ProcessVMReadv(m.pid, []unix.Iovec{{Base: &to[0], Len: uint64(pending)}}, from, 0)
		if err != nil {
			return err
		}
		if n != pending {
			return errors.New("some pages cannot be read")
		}
		to, from, pending = to[n:], from[:0], 0
		return nil
	}
	for _, e := range extents {
		for e.Count > 0 {
			address, n, err := m.locate(e)
			if err != nil {
				return err
			}
			n = min(n, maxBytes/Block)
			from = append(from, unix.RemoteIovec{Base: address, Len: int(n * Block)})
			pending += int(n * Block)
			e.First, e.Count = e.First+n, e.Count-n
			if len(from) == maxVectors || pending >= maxBytes {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// locate gives where an extent begins in the process, and how much of it is mapped in one piece.
func (m *Memory) locate(e Extent) (address uintptr, count int64, err error) {
	for _, mapped := range m.maps {
		if in := e.First*Block - mapped.offset; in >= 0 && in < mapped.length {
			return mapped.address + uintptr(in), min(e.Count, (mapped.length-in)/Block), nil
		}
	}
	return 0, 0, fmt.Errorf("block %d is not mapped", e.First)
}

// Close gives the room back. It is idempotent.
func (m *Memory) Close() {
	if m.buf != nil {
		_ = unix.Munmap(m.buf) // ours
		m.buf = nil
	}
}

// Contains tells whether a block is the process's own.
func (p *Private) Contains(block int64) bool {
	_, found := slices.BinarySearchFunc(p.Extents, block, func(e Extent, block int64) int {
		switch {
		case e.First+e.Count <= block:
			return -1
		case e.First > block:
			return 1
		}
		return 0
	})
	return found
}

// PutInto gives all pages to a delta.
func (p *Private) PutInto(d *Delta) error {
	data := p.Data
	for _, e := range p.Extents {
		n := e.Count * Block
		if err := d.Put(e.First, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
