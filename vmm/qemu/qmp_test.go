package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// A command that is given up before any of it was written, because QEMU does not read, is as if it had never been: the machine lives.
func TestGivenUpBeforeItIsWritten(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "qmp")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	ours, theirs := ends[0], ends[1]
	defer theirs.Close()
	q := newQMP(ours, func(qmpEvent) {})
	defer q.close()
	for _, chunk := range []int{64 << 10, 1} { // of empty lines, until not one byte more finds room
		for err = nil; err == nil; {
			if err = ours.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err == nil {
				_, err = ours.Write(bytes.Repeat([]byte("\n"), chunk))
			}
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if err := ours.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	for _, files := range [][]*os.File{nil, {os.Stdin}} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := q.execute(ctx, "given-up", nil, nil, files...); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with %d files: %v", len(files), err)
		}
		cancel()
	}
	if _, err := fmt.Fprintln(theirs, `{"QMP": {}}`); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(theirs); s.Scan(); {
			var m struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(s.Bytes(), &m) == nil {
				_, _ = fmt.Fprintf(theirs, `{"return": %q, "id": %d}`+"\n", m.Execute, m.ID)
			}
		}
	}()
	var got string
	if err := q.execute(t.Context(), "next", nil, &got); err != nil || got != "next" {
		t.Errorf("the next command: %q, %v", got, err)
	}
}
