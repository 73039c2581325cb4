package guestagent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// InProcess serves conn like an agent whose programs are functions of this process: true, false, echo, cat, sleep SECONDS, exit CODE,
// and spew BYTES. It starts no process and enforces only the wall and output limits. It returns when ctx ends or conn breaks.
func InProcess(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	a := newAgent(&pretence{files: map[string][]byte{}}, "in_process")
	_ = wire.Guest(conn, a.serve) // it ends when conn does, and that is how it is meant to end
}

// pretence does what a machine would, in memory.
type pretence struct {
	mu    sync.Mutex
	files map[string][]byte
}

func abs(p string) string { return path.Join("/work", p) }

func (p *pretence) put(r *wire.Put, data io.Reader) error {
	b, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[abs(r.Path)] = b
	return nil
}

func (p *pretence) get(g *wire.Get, send func(wire.FileHeader, io.Reader) error) error {
	left, files := g.MaxBytes, 0
	for _, name := range p.match(abs(g.Pattern)) {
		p.mu.Lock()
		b := p.files[name]
		p.mu.Unlock()
		if files, left = files+1, left-int64(len(b)); left < 0 || files > g.MaxFiles {
			return &wire.Error{Kind: wire.ErrTooLarge, Message: name + ": more than was asked for"}
		}
		if err := send(wire.FileHeader{Path: strings.TrimPrefix(name, "/work/"), Mode: 0o644, Size: int64(len(b))}, bytes.NewReader(b)); err != nil {
			return err
		}
	}
	return nil
}

func (p *pretence) match(pattern string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for name := range p.files {
		if ok, _ := path.Match(pattern, name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (p *pretence) restore(r *wire.Restore) (*wire.Ready, error) {
	return &wire.Ready{Epoch: r.Epoch, BootID: fmt.Sprintf("%x", r.Epoch)}, nil
}

func (p *pretence) quiesce() error { return nil }
func (p *pretence) power() error {
	return &wire.Error{Kind: wire.ErrRequest, Message: "there is no machine to power off"}
}

func (p *pretence) dial(context.Context, int) (*net.TCPConn, error) { return nil, syscall.ECONNREFUSED }

func (p *pretence) resize(context.Context, *wire.Resize) (*wire.Size, error) {
	return nil, &wire.Error{Kind: wire.ErrRequest, Message: "there is no machine to resize"}
}

func (p *pretence) start(e *wire.Exec) (run, error) {
	name := path.Base(e.Argv[0])
	if !slices.Contains([]string{"true", "false", "echo", "cat", "sleep", "exit", "spew", "env"}, name) {
		return nil, &wire.Error{Kind: wire.ErrStart, Message: e.Argv[0] + ": no such program"}
	}
	r, w := io.Pipe()
	return &pretended{exec: e, name: name, in: r, inw: w, ended: make(chan string, 1)}, nil
}

type pretended struct {
	exec  *wire.Exec
	name  string
	in    *io.PipeReader
	inw   *io.PipeWriter
	ended chan string // a signal's name
}

func (r *pretended) stdin() io.WriteCloser { return r.inw }

func (r *pretended) signal(name string) error {
	select {
	case r.ended <- name:
	default:
	}
	return nil
}

func (r *pretended) wait(ctx context.Context, send func(wire.Channel, []byte) error) (wire.Exit, error) {
	defer r.in.Close() //nolint:errcheck // never fails
	start := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if l := r.exec.Limits.WallMS; l > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(l)*time.Millisecond)
		defer cancel()
	}
	e := r.program(ctx, send)
	e.WallMS = float64(time.Since(start).Microseconds()) / 1000
	return e, nil
}

// program is what a program of that name would do.
func (r *pretended) program(ctx context.Context, send func(wire.Channel, []byte) error) (e wire.Exit) {
	argv := r.exec.Argv
	number := func() int64 {
		if len(argv) < 2 {
			return 0
		}
		f, _ := strconv.ParseFloat(argv[1], 64)
		return int64(f * 1000)
	}
	write := func(b []byte) bool {
		if l := r.exec.Limits.OutputBytes; l > 0 && e.StdoutBytes+int64(len(b)) > l {
			e.StdoutDropped += e.StdoutBytes + int64(len(b)) - l
			b = b[:l-e.StdoutBytes]
			e.Limit, e.Code, e.Signal = wire.LimitStdout, -1, "SIGKILL"
		}
		e.StdoutBytes += int64(len(b))
		return send(wire.ChanStdout, b) == nil && e.Limit == ""
	}
	switch r.name {
	case "false":
		e.Code = 1
	case "exit":
		e.Code = int(number() / 1000)
	case "echo":
		write([]byte(strings.Join(argv[1:], " ") + "\n"))
	case "env":
		write([]byte(strings.Join(r.exec.Env, "\n") + "\n"))
	case "spew":
		chunk := bytes.Repeat([]byte("x"), 32<<10)
		for left := number() / 1000; left > 0; left -= int64(len(chunk)) {
			if !write(chunk[:min(left, int64(len(chunk)))]) {
				break
			}
		}
	case "cat":
		buf := make([]byte, 32<<10)
		for {
			n, err := r.in.Read(buf)
			if n > 0 && !write(buf[:n]) || err != nil {
				break
			}
		}
	case "sleep":
		r.sleep(ctx, time.Duration(number())*time.Millisecond, &e)
	}
	return e
}

func (r *pretended) sleep(ctx context.Context, d time.Duration, e *wire.Exit) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case e.Signal = <-r.ended:
		e.Code = -1
	case <-ctx.Done():
		e.Code, e.Signal, e.Limit = -1, "SIGKILL", wire.LimitWall
	}
}
