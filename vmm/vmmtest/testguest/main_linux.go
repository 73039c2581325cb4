// Command testguest is the smallest guest that the conformance suite can talk to: as PID 1 of a Linux machine it loads the modules
// in /modules.order and answers requests, one per line, where agents do: on vsock, or on the virtio-serial port of that name.
// vmmtest.Guest is the other end.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

const portName = "org.paddock.agent.0"

func main() {
	fmt.Println("testguest:", run())
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	order, err := os.ReadFile("/modules.order")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(order)) {
		if err := loadModule(filepath.Join("/modules", name)); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	if vsockIsThere() {
		v, err := openVsock()
		if err != nil {
			return fmt.Errorf("vsock: %w", err)
		}
		fmt.Println("testguest: serving on vsock")
		return serve(v)
	}
	p, err := openPort()
	if err != nil {
		return err
	}
	fmt.Println("testguest: serving")
	return serve(p)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const sysFinitModule = 313
	empty := []byte{0}
	if _, _, errno := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&empty[0])), 0); errno != 0 && errno != syscall.EEXIST {
		return errno
	}
	return nil
}

// port reads without ever seeing the end of the stream: while the host is away the kernel says EOF again and again, and reports the
// host's return as an edge, which is what Go's poller waits for. So nothing spins and nothing sleeps.
type port struct {
	f   *os.File
	raw syscall.RawConn
}

func openPort() (*port, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil || strings.TrimSpace(string(b)) != portName {
			continue
		}
		fd, err := syscall.Open("/dev/"+filepath.Base(filepath.Dir(n)), syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "port")
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		return &port{f: f, raw: raw}, nil
	}
	return nil, fmt.Errorf("no virtio port named %s", portName)
}

func (p *port) Read(b []byte) (n int, err error) {
	rawErr := p.raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b)
		return n > 0 || err != nil && err != syscall.EAGAIN && err != syscall.EINTR
	})
	if rawErr != nil {
		return 0, rawErr
	}
	return max(n, 0), err
}

func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }

// serve answers until it is told to end the machine.
func serve(p io.ReadWriter) error {
	r := bufio.NewReaderSize(p, 64<<10)
	value := ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		answer := "ok"
		switch verb {
		case "sync":
			answer = "sync " + arg
		case "echo":
			if err := echo(p, r, arg); err != nil {
				fmt.Println("testguest: echo:", err)
			}
			continue
		case "set":
			value = arg
		case "get":
			answer = value
		case "print":
			fmt.Println(arg)
		case "flood":
			go flood()
		case "dirty":
			answer = dirty(arg)
		case "sum":
			answer = sum(arg)
		case "read":
			answer = read(arg)
		case "disk-put":
			answer = diskPut(arg)
		case "disk-get":
			answer = diskGet()
		case "disk-fill":
			answer = diskFill()
		case "disk-beyond":
			answer = diskBeyond()
		case "nics":
			answer = nics()
		case "frame-listen":
			answer = okOr(frameListen())
		case "frame-send":
			answer = okOr(frameSend(arg))
		case "frame-get":
			answer = frameGet()
		case "vsock-dial":
			answer = vsockDial(arg)
		case "poweroff":
			_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
		case "reboot":
			_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
		case "panic":
			_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
		default:
			continue // half a line of a conversation that ended
		}
		if _, err := io.WriteString(p, answer+"\n"); err != nil {
			fmt.Println("testguest: write:", err)
		}
	}
}

func echo(w io.Writer, r io.Reader, size string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(w, io.LimitReader(struct{ io.Reader }{r}, n), make([]byte, 64<<10))
	return err
}

func flood() {
	line := bytes.Repeat([]byte("flood "), 200)
	for {
		_, _ = os.Stdout.Write(append(line, '\n'))
	}
}

var kept [][]byte

func dirty(mib string) string {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return err.Error()
	}
	b := make([]byte, n<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	kept = append(kept, b)
	return "ok"
}

func sum(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// read gives what a small file says, on one line.
func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return strconv.Quote(string(b))
}

// The second disk's last sector holds a line.
func disk(use func(*os.File) error) error {
	f, err := os.OpenFile("/dev/vdb", os.O_RDWR|syscall.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(-512, io.SeekEnd); err != nil {
		return err
	}
	return use(f)
}

func diskPut(value string) string {
	err := disk(func(f *os.File) error {
		sector := make([]byte, 512)
		copy(sector, value)
		_, err := f.Write(sector)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return "ok"
}

func diskGet() string {
	sector := make([]byte, 512)
	err := disk(func(f *os.File) error {
		_, err := io.ReadFull(f, sector)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimRight(sector, "\x00"))
}

// diskFill writes all of the second disk.
func diskFill() string {
	err := disk(func(f *os.File) error {
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		chunk := bytes.Repeat([]byte("fill"), 64<<10)
		for off := int64(0); off < size; off += int64(len(chunk)) {
			if _, err := f.WriteAt(chunk, off); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// diskBeyond uses both disks against their rules: the second past its end, the first, which is read-only, to write to.
func diskBeyond() string {
	sector := make([]byte, 512)
	err := disk(func(f *os.File) error {
		if _, err := f.Seek(0, io.SeekEnd); err != nil {
			return err
		}
		if _, err := f.Write(sector); err == nil {
			return errors.New("written past the end")
		}
		if n, err := f.Read(sector); err == nil {
			return fmt.Errorf("%d bytes read past the end", n)
		}
		root, err := os.OpenFile("/dev/vda", os.O_RDWR|syscall.O_SYNC, 0)
		if err != nil {
			return nil
		}
		defer root.Close()
		if _, err := root.Write(sector); err == nil {
			return errors.New("written to the root")
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return "ok"
}
