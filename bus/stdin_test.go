package bus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

func TestStdin(t *testing.T) {
	s := bustest.Start(t)
	w, nc := s.Connect(), s.Plain()
	job := jobs.NewID()
	subject := "paddock.v1.job.default." + job + ".stdin"
	if _, err := nc.Request(subject, []byte(`{"text": "x"}`), time.Minute); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("before it runs: got %v, want no responders", err)
	}
	program, pipe := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	serve, err := w.OpenStdin(ctx, "default", job, pipe)
	if err != nil {
		t.Fatal(err)
	}
	// A chunk that comes between opening and serving is not lost.
	early := make(chan map[string]any, 1)
	go func() { early <- request(t, nc, subject, `{"text": "early "}`) }()
	done := make(chan struct{})
	go func() { serve(); close(done) }()
	input := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(program)
		input <- string(b)
	}()
	if v := <-early; len(v) > 0 {
		t.Errorf("got %v", v)
	}
	want := "early "
	for i := range 100 {
		if v := request(t, nc, subject, fmt.Sprintf(`{"text": "%d "}`, i)); len(v) > 0 {
			t.Fatalf("chunk %d: got %v", i, v)
		}
		want += fmt.Sprintf("%d ", i)
	}
	for _, c := range []struct{ name, body, code string }{
		{"garbage", "{", "invalid"},
		{"wrong type", `{"text": 1}`, "invalid"},
		{"nothing", `{}`, "invalid"},
		{"text and bytes", `{"text": "x", "base64": "/w=="}`, "invalid"},
		{"a misspelt field", `{"txt": "x"}`, "invalid"},
		{"bytes and the end", `{"base64": "/w==", "eof": true}`, ""},
		{"after the end", `{"text": "x"}`, "conflict"},
		{"the end again", `{"eof": true}`, "conflict"},
	} {
		if v := request(t, nc, subject, c.body); codeIn(v) != c.code {
			t.Errorf("%s: got %v, want %q", c.name, v, c.code)
		}
	}
	if got := <-input; got != want+"\xff" {
		t.Errorf("the program read %q", got)
	}
	cancel()
	<-done
	bustest.Eventually(t, "nobody takes input any more", func() bool {
		_, err := nc.Request(subject, nil, time.Minute)
		return errors.Is(err, nats.ErrNoResponders)
	})
}

// A program that has closed its input is told of as a conflict; a tenant's input is no other's.
func TestStdinRefused(t *testing.T) {
	s := bustest.Start(t)
	w, nc := s.Connect(), s.Plain()
	job := jobs.NewID()
	program, pipe := io.Pipe()
	program.Close()
	ctx, cancel := context.WithCancel(t.Context())
	serve, err := w.OpenStdin(ctx, "default", job, pipe)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { serve(); close(done) }()
	if v := request(t, nc, "paddock.v1.job.default."+job+".stdin", `{"text": "x"}`); codeIn(v) != "conflict" || !strings.Contains(fmt.Sprint(v), "no more input") {
		t.Errorf("got %v", v)
	}
	if _, err := nc.Request("paddock.v1.job.other."+job+".stdin", []byte(`{"text": "x"}`), time.Minute); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("another tenant: got %v, want no responders", err)
	}
	cancel()
	<-done
}
