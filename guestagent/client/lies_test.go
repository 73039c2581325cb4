package client_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/test/bubble"
)

func data(ch byte, s string) []byte { return frame(2, tData, ch, s) }
func reply(s string) []byte         { return frame(2, tReply, 0, s) }
func header(path string, n int64) []byte {
	return data(chMessage, fmt.Sprintf(`{"path":%q,"size":%d}`, path, n))
}

// TestLies are guests that say what no agent says. Each fails the operation that it lies about, with ErrLost and without a hang.
func TestLies(t *testing.T) {
	exec := func(ctx context.Context, c *client.Client) error {
		_, err := c.Exec(ctx, wire.Exec{ID: "x", Argv: []string{"x"}, Limits: wire.ExecLimits{OutputBytes: 5}}, client.Streams{Stdin: strings.NewReader("in"), Stdout: io.Discard})
		return err
	}
	get := func(ctx context.Context, c *client.Client) error {
		return c.Get(ctx, wire.Get{Pattern: "*", MaxBytes: 10, MaxFiles: 2}, func(h wire.FileHeader, r io.Reader) error {
			b, err := io.ReadAll(r)
			if err == nil && int64(len(b)) != h.Size {
				t.Errorf("%d bytes of %+v", len(b), h)
			}
			if int64(len(b)) > 10 {
				t.Errorf("%d bytes came of at most 10", len(b))
			}
			return err
		})
	}
	put := func(ctx context.Context, c *client.Client) error {
		return c.Put(ctx, wire.Put{Path: "f", Size: 1 << 20}, strings.NewReader(strings.Repeat("x", 1<<20)))
	}
	restore := func(ctx context.Context, c *client.Client) error {
		_, err := c.Restore(ctx, wire.Restore{Epoch: []byte("0123456789abcdef")})
		return err
	}
	dial := func(ctx context.Context, c *client.Client) error {
		conn, err := c.Dial(ctx, 80)
		if err != nil {
			return err
		}
		defer conn.Close()
		b, err := io.ReadAll(conn)
		if len(b) > 3 {
			t.Errorf("read %q", b)
		}
		return err
	}
	resize := func(ctx context.Context, c *client.Client) error {
		_, err := c.Resize(ctx, wire.Resize{VCPUs: 2})
		return err
	}
	ping := func(ctx context.Context, c *client.Client) error { return c.Ping(ctx) }
	for _, tt := range []struct {
		name string
		do   func(context.Context, *client.Client) error
		says []byte
	}{
		{"reply that is no JSON", ping, reply("{")},
		{"reply of the wrong type", ping, reply(`{"files":"many"}`)},
		{"reset for a reply", ping, frame(2, tReset, 0, "")},
		{"data for a reply", ping, data(chStdout, "x")},
		{"ready for another restore", restore, reply(`{"ready":{"epoch":"AAAA"}}`)},
		{"restored without saying so", restore, reply(`{}`)},

		{"exit for nothing", exec, reply(`{}`)},
		{"exit with no code that there is", exec, reply(`{"exit":{"code":1e99}}`)},
		{"fewer bytes than it says", exec, join(data(chStdout, "abc"), reply(`{"exit":{"stdout_bytes":4}}`))},
		{"more bytes than it says", exec, join(data(chStderr, "abc"), reply(`{"exit":{"stdout_bytes":3}}`))},
		{"negative bytes", exec, reply(`{"exit":{"stdout_bytes":-1}}`)},
		{"output beyond its limit", exec, join(data(chStdout, "123456"), reply(`{"exit":{"stdout_bytes":6}}`))},
		{"output on stdin's channel", exec, join(data(chData, "x"), reply(`{"exit":{}}`))},
		{"output on the messages' channel", exec, join(data(chMessage, "x"), reply(`{"exit":{}}`))},
		{"output after its exit", exec, join(data(chStdout, "x"), reply(`{"exit":{"stdout_bytes":2}}`), data(chStdout, "x"))},

		{"a file without a header", get, join(data(chData, "x"), reply(`{"files":1}`))},
		{"a header that is no JSON", get, data(chMessage, "x")},
		{"a header without end", get, data(chMessage, `{"path":"`+strings.Repeat("x", 60_000))},
		{"a size below nothing", get, join(header("f", -1), reply(`{"files":1}`))},
		{"a size beyond all", get, header("f", 1<<62)},
		{"sizes that together are too much", get, join(header("a", 6), data(chData, "123456"), header("b", 5), data(chData, "12345"), reply(`{"files":2}`))},
		{"too many files", get, join(header("a", 0), header("b", 0), header("c", 0), reply(`{"files":3}`))},
		{"more files than it says", get, join(header("a", 0), header("b", 0), reply(`{"files":1}`))},
		{"fewer files than it says", get, join(header("a", 0), reply(`{"files":2}`))},
		{"data past a file's end", get, join(header("a", 2), data(chData, "123"), reply(`{"files":1}`))},
		{"data after a file's end", get, join(header("a", 2), data(chData, "12"), data(chData, "3"), reply(`{"files":1}`))},
		{"a reply in the middle of a file", get, join(header("a", 3), data(chData, "12"), reply(`{"files":1}`))},
		{"a reset in the middle of a file", get, join(header("a", 3), data(chData, "12"), frame(2, tReset, 0, ""))},
		{"a header in the middle of a file", get, join(header("a", 3), header("b", 3))},
		{"output in the middle of a file", get, join(header("a", 3), data(chStdout, "123"))},
		{"a file twice", get, join(header("a", 0), header("a", 0), reply(`{"files":2}`))},
		{"files out of order", get, join(header("b", 0), header("a", 0), reply(`{"files":2}`))},
		{"a path without a name", get, join(header("", 0), reply(`{"files":1}`))},
		{"a path up", get, join(header("../f", 0), reply(`{"files":1}`))},
		{"a path up and down", get, join(header("a/../../f", 0), reply(`{"files":1}`))},
		{"the place above", get, join(header("..", 0), reply(`{"files":1}`))},
		{"a path that is absolute", get, join(header("/etc/passwd", 0), reply(`{"files":1}`))},
		{"a path that is not clean", get, join(header("a//b/./c", 0), reply(`{"files":1}`))},
		{"a path with a zero", get, join(data(chMessage, `{"path":"a\u0000b"}`), reply(`{"files":1}`))},
		{"a path longer than there are", get, join(header(strings.Repeat("x", 5000), 0), reply(`{"files":1}`))},

		{"resized without saying so", resize, reply(`{}`)},
		{"a size of no number", resize, reply(`{"size":{"vcpus":"all"}}`)},

		{"a connection that begins with data", dial, data(chData, "open")},
		{"a connection that begins with its end", dial, data(chMessage, "end")},
		{"a connection that is over before it began", dial, reply(`{}`)},
		{"output of a connection", dial, join(data(chMessage, "open"), data(chStdout, "x"))},
		{"a connection that begins twice", dial, join(data(chMessage, "open"), data(chMessage, "open"))},
		{"a connection that breaks off", dial, join(data(chMessage, "open"), data(chData, "abc"), frame(2, tReset, 0, ""))},

		{"a file put before it was sent", put, reply(`{}`)},
		{"credit for a put that is not used", put, frame(2, tCredit, 0, "\xff\xff\xff\xff")},
		{"data for a put", put, data(chData, "x")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := hostileGuest(t, func(uint32, string) []byte { return tt.says })
			if err := tt.do(t.Context(), c); !errors.Is(err, client.ErrLost) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestModeOfFile shows that no set-uid bit comes out of a guest.
func TestModeOfFile(t *testing.T) {
	c := hostileGuest(t, func(uint32, string) []byte {
		return join(data(chMessage, `{"path":"f","mode":4294967295}`), reply(`{"files":1}`))
	})
	err := c.Get(t.Context(), wire.Get{Pattern: "*", MaxFiles: 1}, func(h wire.FileHeader, _ io.Reader) error {
		if h.Mode != 0o777 {
			t.Errorf("mode %#o", h.Mode)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestNeverReplies shows that a guest that reads and says nothing holds an operation as long as its context, and that the context's
// cause is the error: it is not the agent that failed.
func TestNeverReplies(t *testing.T) {
	cause := errors.New("cause")
	for _, tt := range []struct {
		name string
		do   func(context.Context, *client.Client) error
	}{
		{"ping", func(ctx context.Context, c *client.Client) error { return c.Ping(ctx) }},
		{"put", func(ctx context.Context, c *client.Client) error {
			return c.Put(ctx, wire.Put{Path: "f", Size: 10 << 20}, zeros{})
		}},
		{"exec", func(ctx context.Context, c *client.Client) error {
			_, err := c.Exec(ctx, wire.Exec{ID: "x", Argv: []string{"x"}}, client.Streams{Stdin: zeros{}})
			return err
		}},
		{"get", func(ctx context.Context, c *client.Client) error {
			return c.Get(ctx, wire.Get{Pattern: "*", MaxBytes: 10, MaxFiles: 1}, nil)
		}},
		{"get, in a file", func(ctx context.Context, c *client.Client) error {
			return c.Get(ctx, wire.Get{Pattern: "file", MaxBytes: 10, MaxFiles: 1}, func(_ wire.FileHeader, r io.Reader) error {
				_, err := io.ReadAll(r)
				return err
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := hostileGuest(t, func(_ uint32, request string) []byte {
					if strings.Contains(request, `"file"`) {
						return header("f", 5)
					}
					return nil
				})
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, cause)
				defer cancel()
				if err := tt.do(ctx, c); !errors.Is(err, cause) || errors.Is(err, client.ErrLost) {
					t.Errorf("error %v", err)
				}
				synctest.Wait()
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// TestStopsReading is a guest that takes nothing any more in the middle of a job: who writes to it, and who gives it up, is held for some
// seconds and not for ever.
func TestStopsReading(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		host, guest := net.Pipe()
		defer guest.Close()
		go func() {
			r := bufio.NewReader(guest)
			if greet(guest, r) == nil {
				_, _ = hear(r)
				_, _ = guest.Write(frame(1, tReply, 0, hello))
				_, _ = hear(r)
			}
		}()
		c, err := client.Connect(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Exec(t.Context(), wire.Exec{ID: "x", Argv: []string{"x"}}, client.Streams{Stdin: zeros{}})
		if !errors.Is(err, client.ErrLost) || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		<-c.Done()
	})
}

// TestRepliesToWhomItLikes is a guest that confuses the streams: those that it does not answer are not answered by others' replies.
func TestRepliesToWhomItLikes(t *testing.T) {
	c := hostileGuest(t, func(stream uint32, request string) []byte {
		switch stream {
		case 2, 3:
			return nil
		default: // it answers the first two, one of them twice, and one that was never asked
			return join(frame(2, tReply, 0, `{"error":{"kind":"agent","message":"for 2"}}`), frame(3, tReply, 0, `{"error":{"kind":"agent","message":"for 3"}}`), frame(2, tReply, 0, `{}`), frame(99, tReply, 0, `{}`))
		}
	})
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			err := c.Ping(t.Context())
			if e, ok := errors.AsType[*wire.Error](err); ok && !strings.HasPrefix(e.Message, "for") || err == nil {
				t.Errorf("error %v", err)
			}
		})
	}
	running.Go(func() {
		if err := c.Ping(t.Context()); err == nil {
			t.Error("answered")
		}
	})
	running.Wait()
}

// TestLongErrors shows that what a guest says of its failure is no longer than what an agent says.
func TestLongErrors(t *testing.T) {
	long := strings.Repeat("é", 15_000)
	c := hostileGuest(t, func(uint32, string) []byte {
		return reply(`{"error":{"kind":"` + long + `","message":"` + long + `"}}`)
	})
	err := c.Ping(t.Context())
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || len(e.Kind) > 4096 || len(e.Message) > 4096 || len(err.Error()) > 5000 || strings.Trim(e.Message, "é") != "" {
		t.Errorf("an error of %d bytes", len(fmt.Sprint(err)))
	}
}
