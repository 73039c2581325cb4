package client_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
)

// scripted is a connection to a guest that answers the greeting and the hello, then says what it was made with, and ends.
type scripted struct {
	net.Conn
	says    []byte
	once    sync.Once
	greeted chan struct{}
	opened  [3]chan struct{} // closed when the stream of that number has been
	r       io.Reader
}

func (s *scripted) Write(b []byte) (int, error) {
	s.once.Do(func() {
		s.r = io.MultiReader(bytes.NewReader(join([]byte("PDKGUEST\x01"), b[10:])),
			after(s.opened[1]), bytes.NewReader(frame(1, tReply, 0, hello)), after(s.opened[2]), bytes.NewReader(s.says))
		close(s.greeted)
	})
	if b[0] == 0 && b[8] == tOpen { // a frame, then, and no greeting
		close(s.opened[b[7]])
	}
	return len(b), nil
}

func (s *scripted) Read(b []byte) (int, error) {
	<-s.greeted
	return s.r.Read(b)
}

func (*scripted) Close() error                     { return nil }
func (*scripted) SetDeadline(time.Time) error      { return nil }
func (*scripted) SetReadDeadline(time.Time) error  { return nil }
func (*scripted) SetWriteDeadline(time.Time) error { return nil }

// after is an empty reader that ends when a channel is closed.
type after <-chan struct{}

func (a after) Read([]byte) (int, error) {
	<-a
	return 0, io.EOF
}

// FuzzHostSide is a guest that answers an operation with anything: the client neither panics nor hangs, gives its caller no more than was
// asked for, and no path that leads out.
func FuzzHostSide(f *testing.F) {
	for op, s := range map[byte][]byte{
		0: reply(`{"exit":{"code":0}}`),
		1: join(data(chStdout, "abc"), data(chStderr, "def"), reply(`{"exit":{"stdout_bytes":3,"stderr_bytes":3}}`)),
		2: join(header("a", 2), data(chData, "12"), header("b", 0), reply(`{"files":2}`)),
		3: join(frame(2, tCredit, 0, "\x00\x01\x00\x00"), reply(`{}`)),
	} {
		f.Add(op, s)
		f.Add(op, s[:len(s)-3])
		f.Add(byte(2), s)
	}
	f.Add(byte(4), join(data(chMessage, "open"), data(chData, "abc"), data(chMessage, "end"), reply(`{}`)))
	f.Add(byte(4), reply(`{"error":{"kind":"refused"}}`))
	f.Add(byte(5), reply(`{"size":{"vcpus":2,"plugged_mib":128}}`))
	f.Add(byte(2), join(header("../a", 2), data(chData, "12")))
	f.Add(byte(2), header("a", 1<<62))
	f.Add(byte(1), data(chStdout, strings.Repeat("x", 1001)))
	f.Fuzz(func(t *testing.T, op byte, says []byte) {
		guest := &scripted{says: says, greeted: make(chan struct{}), opened: [3]chan struct{}{1: make(chan struct{}), 2: make(chan struct{})}}
		c, err := client.Connect(context.Background(), guest)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx := context.Background()
		switch op % 6 {
		case 0:
			_ = c.Ping(ctx)
		case 1:
			var out, errOut bytes.Buffer
			exec := wire.Exec{ID: "x", Argv: []string{"x"}, Limits: wire.ExecLimits{OutputBytes: 1000}}
			exit, err := c.Exec(ctx, exec, client.Streams{Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errOut})
			if max(out.Len(), errOut.Len()) > 1000 || err == nil && (exit.StdoutBytes != int64(out.Len()) || exit.StderrBytes != int64(errOut.Len())) {
				t.Errorf("%d and %d bytes, %+v", out.Len(), errOut.Len(), exit)
			}
		case 2:
			files, total := 0, 0
			_ = c.Get(ctx, wire.Get{Pattern: "*", MaxBytes: 1000, MaxFiles: 3}, func(h wire.FileHeader, r io.Reader) error {
				b, err := io.ReadAll(r)
				files, total = files+1, total+len(b)
				if h.Path == "" || h.Path[0] == '/' || h.Path == ".." || strings.HasPrefix(h.Path, "../") || strings.Contains(h.Path, "/../") {
					t.Errorf("path %q", h.Path)
				}
				return err
			})
			if files > 3 || total > 1000 {
				t.Errorf("%d files, %d bytes", files, total)
			}
		case 3:
			_ = c.Put(ctx, wire.Put{Path: "f", Size: 1 << 19}, zeros{})
		case 4:
			if conn, err := c.Dial(ctx, 80); err == nil {
				_, _ = conn.Write([]byte("in"))
				if b, _ := io.ReadAll(conn); len(b) > len(says) {
					t.Errorf("%d bytes came out of %d", len(b), len(says))
				}
				_ = conn.Close()
			}
		case 5:
			_, _ = c.Resize(ctx, wire.Resize{VCPUs: 2})
		}
	})
}
