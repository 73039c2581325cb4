// Package steps runs programs one after the other and tells everything that happens as events: inside the test's KVM host, where the
// events leave by a serial port as lines of JSON, and directly on a machine whose own KVM works. It knows nothing of Go's tests.
package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Plan is what is to be run.
type Plan struct {
	Steps []Step `json:"steps"`
	// Env is added to the environment of all steps.
	Env []string `json:"env"`
	// Out is a directory whose files are told when all steps are over. Steps find its name in PADDOCK_TEST_OUT.
	Out string `json:"out"`
}

// Step is one program.
type Step struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	Dir  string   `json:"dir"`
	Env  []string `json:"env,omitempty"`
	// Timeout is when the step is ended, with all of its process group: first by SIGQUIT, at which a Go program says where it was.
	Timeout time.Duration `json:"timeout"`
}

// Kind is what an event tells.
type Kind string

const (
	// Ready is the first event: steps can be run. Detail says by whom.
	Ready Kind = "ready"
	// Begin, Output and End are a step's: Detail, Data and Code hold the rest.
	Begin  Kind = "begin"
	Output Kind = "output"
	End    Kind = "end"
	// File is a piece of a file of the Plan's Out, whose name is in Detail.
	File Kind = "file"
	// Done is the last event. Without it something went wrong that could not be told.
	Done Kind = "done"
)

// Event is one thing that happened.
type Event struct {
	Kind   Kind   `json:"kind"`
	Step   string `json:"step,omitempty"`
	Data   []byte `json:"data,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Code is a step's exit code; -1 for one that did not exit by itself, of which Detail tells more.
	Code int `json:"code,omitempty"`
	// Took is how long the step ran.
	Took time.Duration `json:"took,omitempty"`
}

// Where is what a host can do beyond starting processes. The zero value can do nothing beyond that.
type Where struct {
	// Enter is called before a step is started and may change how; what it gives is called after the step's end, and tells what of the
	// step is left over, as an error. It takes that away.
	Enter func(step string, cmd *exec.Cmd) (leave func() error, err error)
}

// Run runs the steps, all of them, and tells of each. emit is called by one goroutine at a time. The error is ctx's, or of the files in Out:
// how steps end is in their events.
func Run(ctx context.Context, p Plan, w Where, emit func(Event)) error {
	for _, s := range p.Steps {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		emit(Event{Kind: Begin, Step: s.Name})
		start := time.Now()
		end := Event{Kind: End, Step: s.Name}
		if err := run(ctx, p, s, w, emit); err != nil {
			end.Code, end.Detail = -1, err.Error()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
				end.Code = exit.ExitCode()
			}
		}
		end.Took = time.Since(start)
		emit(end)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return tellFiles(p.Out, emit)
}

// quitting is how long a program that was sent SIGQUIT may go on.
const quitting = 10 * time.Second

func run(ctx context.Context, p Plan, s Step, w Where, emit func(Event)) (err error) {
	stepCtx, cancel := context.WithTimeoutCause(ctx, s.Timeout, fmt.Errorf("took more than %v", s.Timeout))
	defer cancel()
	cmd := exec.CommandContext(stepCtx, s.Argv[0], s.Argv[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Env = append(cmd.Env, s.Env...)
	cmd.Env = append(cmd.Env, "PADDOCK_TEST_OUT="+p.Out)
	out := &output{step: s.Name, emit: emit}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	cmd.WaitDelay = quitting
	if w.Enter != nil {
		leave, refused := w.Enter(s.Name, cmd)
		if refused != nil {
			return refused
		}
		defer func() {
			if left := leave(); left != nil {
				err = errors.Join(err, left)
			}
		}()
	}
	err = cmd.Run()
	cause := context.Cause(stepCtx)
	if cmd.Process != nil && (cause != nil || w.Enter == nil) { // else what is left of its group is found by leave
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if cause != nil && err != nil {
		return errors.Join(cause, err)
	}
	return err
}

// output tells what a step prints.
type output struct {
	step string
	emit func(Event)
}

func (o *output) Write(b []byte) (int, error) {
	o.emit(Event{Kind: Output, Step: o.step, Data: append([]byte(nil), b...)})
	return len(b), nil
}

// piece is how much of a file one event holds.
const piece = 48 << 10

func tellFiles(dir string, emit func(Event)) error {
	if dir == "" {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, piece)
		for {
			n, err := io.ReadFull(f, b)
			if n > 0 {
				emit(Event{Kind: File, Detail: name, Data: append([]byte(nil), b[:n]...)})
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}

// Lines writes events as lines of JSON. The first error stays and is given by Err.
type Lines struct {
	mu  sync.Mutex
	enc *json.Encoder
	err error
}

// NewLines writes to w, an event at a time.
func NewLines(w io.Writer) *Lines { return &Lines{enc: json.NewEncoder(w)} }

// Emit writes an event.
func (l *Lines) Emit(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = l.enc.Encode(e)
	}
}

// Err is what went wrong.
func (l *Lines) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
