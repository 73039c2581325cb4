package client_test

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/paddockvm/paddock/jobs"
)

func TestStdin(t *testing.T) {
	r := newRig(t)
	if _, err := r.client.Stdin(t.Context(), r.job).Write([]byte("x")); code(err) != jobs.CodeUnavailable {
		t.Errorf("it never runs: got %v, want unavailable", err)
	}
	program, pipe := io.Pipe()
	input := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(program)
		input <- b
	}()
	in := r.client.Stdin(t.Context(), r.job)
	want := bytes.Repeat([]byte("0123456789\xff"), 40_000)
	written := make(chan error, 1)
	go func() { // before it runs: the writer waits a moment
		_, err := in.Write(want)
		written <- err
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	serve, err := r.bus.OpenStdin(ctx, "default", r.job, pipe)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { serve(); close(done) }()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if got := <-input; !bytes.Equal(got, want) {
		t.Errorf("the program read %d bytes, want %d", len(got), len(want))
	}
	if _, err := in.Write([]byte("x")); code(err) != jobs.CodeConflict {
		t.Errorf("after the end: got %v, want conflict", err)
	}
	cancel()
	<-done
}
