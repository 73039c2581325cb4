package guestagent_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
)

const nonce = "0123456789abcdef"

func frame(stream uint32, typ, channel byte, payload string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(append(b, typ, channel, 0, 0), payload...)
}

func openFrame(stream uint32, r wire.Request) []byte {
	b, _ := json.Marshal(r)
	return frame(stream, 1, 0, string(b))
}

func hostGreeting() []byte { return []byte("PDKHOST\x01\x01\x01" + nonce) }

// TestHostVanishesAndComesBack leaves an agent in the middle of a frame, with a program that runs, and comes back over the same stream:
// the next host finds an agent that answers, and nothing of what was.
func TestHostVanishesAndComesBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		left []byte
	}{
		{"between frames", nil},
		{"in a header", frame(1, 2, 0, "x")[:7]},
		{"in stdin", frame(1, 2, 0, strings.Repeat("x", 1<<16))[:9999]},
		{"in a file", append(openFrame(2, wire.Request{Op: wire.OpPut, Put: &wire.Put{Path: "half", Size: 100}}), frame(2, 2, 0, "half of it")...)},
		{"in a request", openFrame(2, wire.Request{Op: wire.OpPing})[:20]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, _ := listening(t, t.TempDir())
			e := sh("setsid sleep 1000 & echo $!; cat >/dev/null; sleep 1000")
			e.StdinOpen = true
			must(t, write(conn, hostGreeting()), discard(conn, 25), write(conn, openFrame(1, wire.Request{Op: wire.OpExec, Exec: &e})))
			pid := firstLine(t, conn)
			must(t, write(conn, tt.left))

			c, err := client.Connect(t.Context(), conn)
			must(t, err)
			defer c.Close()
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("process %d of the host before: %v", pid, err)
			}
			if _, out, _ := run(t, c, sh("ls; cat"), "still\n"); out != "still\n" {
				t.Errorf("the next program finds %q", out)
			}
		})
	}
}

func write(conn net.Conn, b []byte) error {
	_, err := conn.Write(b)
	return err
}

func discard(conn net.Conn, n int64) error {
	_, err := io.CopyN(io.Discard, conn, n)
	return err
}

// firstLine reads stdout's frames up to a line, which holds a number.
func firstLine(t *testing.T, conn net.Conn) int {
	t.Helper()
	var line []byte
	for !bytes.HasSuffix(line, []byte("\n")) {
		var h [12]byte
		_, err := io.ReadFull(conn, h[:])
		must(t, err)
		b := make([]byte, binary.BigEndian.Uint32(h[:]))
		_, err = io.ReadFull(conn, b)
		must(t, err)
		if h[8] != 2 || h[9] != 2 {
			t.Fatalf("frame % x %s", h, b)
		}
		line = append(line, b...)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(line)))
	must(t, err)
	return n
}

// TestHostEndVanishes closes the byte stream itself: the agent ends, and what it had started has ended before.
func TestHostEndVanishes(t *testing.T) {
	conn, cmd := listening(t, t.TempDir())
	must(t, write(conn, hostGreeting()), discard(conn, 25))
	e := sh("trap '' TERM; (setsid sleep 1000 & echo $!); read go; yes >&2") // its output fills what nobody reads
	e.StdinOpen = true
	must(t, write(conn, openFrame(1, wire.Request{Op: wire.OpExec, Exec: &e})))
	pid := firstLine(t, conn) // before the flood: two streams have no order between them
	must(t, write(conn, frame(1, 2, 0, "\n")), discard(conn, 64<<10))
	must(t, write(conn, frame(1, 2, 0, "cut")[:13]), conn.Close())
	_ = cmd.Wait()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v", pid, err)
	}
}

// FuzzGuestSide is a host that says anything to an agent that pretends to run programs.
func FuzzGuestSide(f *testing.F) {
	requests := []wire.Request{
		{Op: wire.OpHello}, {Op: wire.OpPing}, {Op: wire.OpQuiesce}, {Op: wire.OpPower}, {Op: "none"},
		{Op: wire.OpRestore}, {Op: wire.OpRestore, Restore: &wire.Restore{Epoch: []byte("x")}},
		{Op: wire.OpExec}, {Op: wire.OpExec, Exec: &wire.Exec{}}, {Op: wire.OpExec, Exec: &wire.Exec{Argv: []string{"cat"}, StdinOpen: true}},
		{Op: wire.OpExec, Exec: &wire.Exec{Argv: []string{"spew", "1e300"}, Limits: wire.ExecLimits{OutputBytes: 1000, WallMS: -1}}},
		{Op: wire.OpExec, Exec: &wire.Exec{Argv: []string{"sleep", "1e300"}}}, {Op: wire.OpExec, Exec: &wire.Exec{Argv: []string{"exit", "-1"}}},
		{Op: wire.OpSignal, Signal: &wire.Signal{}}, {Op: wire.OpSignal},
		{Op: wire.OpPut, Put: &wire.Put{Path: "f", Size: 2}}, {Op: wire.OpPut, Put: &wire.Put{Size: -1}},
		{Op: wire.OpDial}, {Op: wire.OpDial, Dial: &wire.Dial{Port: 80}}, {Op: wire.OpDial, Dial: &wire.Dial{Port: -1}},
		{Op: wire.OpResize}, {Op: wire.OpResize, Resize: &wire.Resize{VCPUs: 1 << 40, PluggedMiB: -1}}, {Op: wire.OpResize, Resize: &wire.Resize{}},
		{Op: wire.OpGet, Get: &wire.Get{Pattern: "*", MaxBytes: 10, MaxFiles: 1}}, {Op: wire.OpGet, Get: &wire.Get{Pattern: "["}},
	}
	var all []byte
	for i, r := range requests {
		b := append(openFrame(1, r), append(frame(1, 2, 0, "in"), frame(1, 4, 0, "")...)...)
		f.Add(b)
		f.Add(append(openFrame(1, r), frame(1, 6, 0, "")...))
		all = append(all, openFrame(uint32(i+1), r)...)
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		host, guest := net.Pipe()
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, host)
		}()
		go func() {
			_, _ = host.Write(append(hostGreeting(), b...))
			_ = host.Close()
		}()
		guestagent.InProcess(context.Background(), guest)
		_ = guest.Close()
		<-read
	})
}
