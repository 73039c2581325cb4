package client_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/bubble"
)

// inProcess is a client of an honest agent.
func inProcess(t *testing.T) *client.Client {
	t.Helper()
	host, guest := net.Pipe()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		guestagent.InProcess(ctx, guest)
	}()
	c, err := client.Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = c.Close()
		stop()
		<-done
	})
	return c
}

func kind(err error) string {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Kind
	}
	return ""
}

func TestOperations(t *testing.T) {
	c := inProcess(t)
	if h := c.Hello(); h.Version != guestagent.Version || len(h.Degraded) == 0 {
		t.Errorf("hello %+v", h)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Quiesce(t.Context()); err != nil {
		t.Error(err)
	}
	epoch := []byte("0123456789abcdef")
	if r, err := c.Restore(t.Context(), wire.Restore{Epoch: epoch}); err != nil || !bytes.Equal(r.Epoch, epoch) || r.BootID == "" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := c.PowerOff(t.Context()); kind(err) != wire.ErrRequest {
		t.Errorf("power off: %v", err)
	}
	if err := c.Signal(t.Context(), "none", "SIGTERM"); kind(err) != wire.ErrRequest {
		t.Errorf("signal: %v", err)
	}
	if _, err := c.Exec(t.Context(), wire.Exec{ID: "x"}, client.Streams{}); kind(err) != wire.ErrRequest {
		t.Errorf("exec without a program: %v", err)
	}
	if _, err := c.Exec(t.Context(), wire.Exec{ID: "x", Argv: []string{strings.Repeat("x", wire.MaxRequest)}}, client.Streams{}); kind(err) != wire.ErrTooLarge {
		t.Errorf("exec of a huge request: %v", err)
	}
	_, err := c.Exec(t.Context(), wire.Exec{ID: "x", Argv: []string{strings.Repeat("\x01", 9000)}}, client.Streams{})
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.ErrStart || len(e.Message) > 4096 {
		t.Errorf("an error that quotes all that was sent: %d bytes", len(err.Error()))
	}
}

func TestExecStreams(t *testing.T) {
	c := inProcess(t)
	in := strings.Repeat("0123456789", 200_000)
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), wire.Exec{ID: "x", Argv: []string{"cat"}}, client.Streams{Stdin: strings.NewReader(in), Stdout: iotest.TruncateWriter(&out, int64(len(in)+1))})
	if err != nil || exit.Code != 0 || out.String() != in || exit.StdoutBytes != int64(len(in)) {
		t.Errorf("%+v, %d bytes, %v", exit, out.Len(), err)
	}
	full := errors.New("full")
	if _, err := c.Exec(t.Context(), wire.Exec{ID: "x", Argv: []string{"spew", "1000000"}}, client.Streams{Stdout: failing{full}}); !errors.Is(err, full) {
		t.Errorf("a writer's error: %v", err)
	}
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := c.Exec(ctx, wire.Exec{ID: "y", Argv: []string{"sleep", "60"}}, client.Streams{}); !errors.Is(err, cause) || errors.Is(err, client.ErrLost) {
		t.Errorf("a cause: %v", err)
	}
	if err := c.Ping(t.Context()); err != nil { // all that cost nothing but its own
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestPutGet(t *testing.T) {
	c := inProcess(t)
	files := map[string]string{"b": "of b", "a": strings.Repeat("a", 1_000_000), "empty": ""}
	for name, content := range files {
		if err := c.Put(t.Context(), wire.Put{Path: name, Size: int64(len(content))}, iotest.HalfReader(strings.NewReader(content))); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	got := map[string]string{}
	read := func(h wire.FileHeader, r io.Reader) error {
		b, err := io.ReadAll(iotest.OneByteReader(r))
		names, got[h.Path] = append(names, h.Path), string(b)
		return err
	}
	if err := c.Get(t.Context(), wire.Get{Pattern: "*", MaxBytes: 1_000_004, MaxFiles: 3}, read); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a", "b", "empty"}, names) + cmp.Diff(files, got); d != "" {
		t.Error(d)
	}
	for _, g := range []wire.Get{{Pattern: "*", MaxBytes: 1_000_003, MaxFiles: 3}, {Pattern: "*", MaxBytes: 2_000_000, MaxFiles: 2}} {
		if err := c.Get(t.Context(), g, read); kind(err) != wire.ErrTooLarge {
			t.Errorf("%+v gives %v", g, err)
		}
	}
	if err := c.Get(t.Context(), wire.Get{Pattern: "*", MaxBytes: 2_000_000, MaxFiles: 3}, func(wire.FileHeader, io.Reader) error { return nil }); err == nil {
		t.Error("a file that was not read")
	}
	mine := errors.New("mine")
	if err := c.Get(t.Context(), wire.Get{Pattern: "*", MaxBytes: 2_000_000, MaxFiles: 3}, func(wire.FileHeader, io.Reader) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("the caller's error: %v", err)
	}
}

// TestPutFails shows that a file that does not come whole is the caller's failure, at once, and is not written.
func TestPutFails(t *testing.T) {
	c := inProcess(t)
	if err := c.Put(t.Context(), wire.Put{Path: "f", Size: 5}, strings.NewReader("four")); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, client.ErrLost) {
		t.Errorf("too short: %v", err)
	}
	mine := errors.New("mine")
	if err := c.Put(t.Context(), wire.Put{Path: "f", Size: 1 << 20}, io.MultiReader(strings.NewReader("four"), iotest.ErrReader(mine))); !errors.Is(err, mine) || errors.Is(err, client.ErrLost) {
		t.Errorf("the reader's error: %v", err)
	}
	if err := c.Put(t.Context(), wire.Put{Path: "f", Size: -1}, strings.NewReader("")); err == nil {
		t.Error("a negative size")
	}
	err := c.Get(t.Context(), wire.Get{Pattern: "*", MaxBytes: 100, MaxFiles: 9}, func(h wire.FileHeader, _ io.Reader) error {
		return fmt.Errorf("there is a file %s", h.Path)
	})
	if err != nil {
		t.Error(err)
	}
}

// TestConnect shows that no guest keeps a host beyond its context, and that nothing stays behind (TestMain).
func TestConnect(t *testing.T) {
	for _, tt := range []struct {
		name string
		says []byte // to the hello; nothing more is read after it
		want error
	}{
		{"silent", nil, context.DeadlineExceeded},
		{"no content", frame(1, tReply, 0, "{}"), client.ErrLost},
		{"no JSON", frame(1, tReply, 0, "{"), client.ErrLost},
		{"data", frame(1, tData, chStdout, "x"), client.ErrLost},
		{"reset", frame(1, tReset, 0, ""), client.ErrLost},
		{"a violation", frame(9, tReply, 0, "{}"), client.ErrLost},
		{"its own error", frame(1, tReply, 0, `{"error":{"kind":"agent","message":"ill"}}`), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				host, guest := net.Pipe()
				defer host.Close()
				defer guest.Close()
				go func() {
					r := bufio.NewReader(guest)
					if greet(guest, r) == nil {
						_, _ = hear(r)
						_, _ = guest.Write(tt.says)
					}
				}()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := client.Connect(ctx, host)
				if tt.want != nil && !errors.Is(err, tt.want) || tt.want == nil && kind(err) != wire.ErrAgent {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}
