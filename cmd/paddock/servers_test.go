package main

import (
	"bufio"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// TestSignalWhileTheLedgerIsSilent: a dispatcher that begins, and waits for a database that is there and says nothing, ends at the first signal.
func TestSignalWhileTheLedgerIsSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 100)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				b := pgproto3.NewBackend(c, c)
				if _, err := b.ReceiveStartupMessage(); err != nil {
					return
				}
				b.Send(&pgproto3.AuthenticationOk{})
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				if b.Flush() != nil {
					return
				}
				if _, err := b.Receive(); err == nil {
					asked <- struct{}{}
				}
				_, _ = io.Copy(io.Discard, c) // until it is left
			})
		}
	})
	defer serving.Wait()
	defer l.Close()
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("paddock", "dispatcher", "--listen", addr, "--metrics-listen", "", "--state-dir", t.TempDir(),
		"--ledger", "postgres://paddock@"+l.Addr().String()+"/paddock?sslmode=disable")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-asked:
	case err := <-ended:
		t.Fatalf("it ended before it asked: %v\n%s", err, said.String())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%v\n%s", err, said.String())
		}
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		<-ended
		t.Errorf("it still waits for the database\n%s", said.String())
	}
}

// TestUnreadLog: a server goes on, and stops in order, when nobody reads what it says any more: Ctrl-C in a terminal ends the other end of a pipe too.
func TestUnreadLog(t *testing.T) {
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("paddock", "dispatcher", "--listen", addr, "--metrics-listen", "", "--state-dir", t.TempDir())
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(said); lines.Scan() && !strings.Contains(lines.Text(), "paddock: ready"); {
	}
	_ = said.Close()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	hung := time.AfterFunc(within, func() { _ = cmd.Process.Kill() })
	defer hung.Stop()
	if err := cmd.Wait(); err != nil {
		t.Error("it ended with", err)
	}
}
