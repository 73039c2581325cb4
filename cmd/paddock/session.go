package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// session is a job that is shown here from its submission to its end: output as it comes, input on its way, Ctrl-C as a cancel.
type session struct {
	c         *client.Client
	in        io.Reader // nil: the program gets no input from here
	out, err  io.Writer
	format    string // "text" shows the output; "json" and "yaml" the job's record at its end, and nothing before
	artifacts string // directory for artifacts; empty: they are only named
	submit    *submitting
	progress  *progress

	job      string        // set before accepted is closed
	accepted chan struct{} //
	canceled chan struct{} // closed at the first interrupt
	waiting  *time.Timer   // says so when it has been long
	shown    viewer
}

// run submits the job, follows it to its end and gives the error to exit with.
func (s *session) run(ctx context.Context, spec *jobs.Spec) error {
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	s.accepted, s.canceled, s.progress, s.shown = make(chan struct{}), make(chan struct{}), newProgress(), viewer{out: s.out, err: s.err}
	defer s.progress.done()
	signals := make(chan os.Signal, 2)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} { // before anybody could have accepted the job
		if !signal.Ignored(sig) { // by nohup, or by a shell for what is in its background
			signal.Notify(signals, sig)
		}
	}
	defer signal.Stop(signals)
	signal.Ignore(syscall.SIGPIPE) // a write says it, and then there is a job to cancel
	go s.interrupts(ctx, signals, leave)

	spec.IdempotencyKey = s.submit.key(spec.IdempotencyKey)
	how := submitting{within: s.submit.within, say: s.say, stop: s.canceled}
	r, err := submitted(ctx, &how, func(ctx context.Context) (jobs.SubmitReply, error) { return s.c.Submit(ctx, spec) })
	if err != nil {
		return s.left(ctx, err)
	}
	for _, w := range r.Warnings {
		s.say("warning: %s", w)
	}
	s.job = r.Job.ID
	close(s.accepted)
	s.progress.passing("waiting for a machine, job %s", s.job)
	long := time.AfterFunc(patience, func() {
		s.say("job %s still waits for a machine; is a worker running, and has it room? `paddock ls` shows the queue, Ctrl-C cancels", s.job)
	})
	defer long.Stop()
	s.waiting = long
	return s.left(ctx, s.follow(ctx))
}

// patience is after how long somebody who sees nothing wants to know why. Tests that want nothing said but what the job says have more.
var patience = 5 * time.Second

// follow shows the job's events until the last.
func (s *session) follow(ctx context.Context) error {
	feeding := false
	for e, err := range s.c.Follow(ctx, s.job, client.Position{}) {
		if err != nil {
			return err
		}
		if e.Type == jobs.EventState && e.State == jobs.StateRunning {
			s.waiting.Stop()
			s.progress.done()
			if s.in != nil && !feeding {
				feeding = true
				go s.feed(ctx)
			}
		}
		if e.Type == jobs.EventState && e.State == jobs.StateQueued {
			s.say("%s; it will be tried again", e.Reason)
		}
		if s.format == "text" {
			if err := s.shown.show(e); err != nil {
				return s.unread(ctx, err)
			}
		}
		if !e.Final || e.Result == nil {
			continue
		}
		s.progress.done()
		if err := s.save(ctx, e.Result); err != nil {
			return err
		}
		if err := s.record(ctx); err != nil {
			return err
		}
		return exitOf(*e.Result)
	}
	return errors.New("the job's events ended before the job did")
}

// record prints the job's record where that was asked for.
func (s *session) record(ctx context.Context) error {
	if s.format == "text" {
		return nil
	}
	j, err := s.c.Get(ctx, s.job)
	if err != nil {
		return err
	}
	return show(s.out, s.format, j, nil)
}

// unread ends a job whose output nobody takes any more, as a program in a pipe ends.
func (s *session) unread(ctx context.Context, err error) error {
	if _, cerr := s.c.Cancel(ctx, s.job); cerr != nil {
		err = errors.Join(err, fmt.Errorf("cancel: %w", cerr))
	} else if errors.Is(err, syscall.EPIPE) {
		return exitError{128 + int(syscall.SIGPIPE)}
	}
	return fmt.Errorf("show output: %w", err)
}

// say prints a line for people where a line that overwrites itself may stand.
func (s *session) say(format string, args ...any) {
	s.progress.done()
	say(format, args...)
}

var errLeft = errors.New("left at an interrupt")

// left turns the error of a session that its user left, at the second interrupt or before the job was accepted, into what there is to say of it.
func (s *session) left(ctx context.Context, err error) error {
	if err == nil || !errors.Is(err, errLeft) && !errors.Is(context.Cause(ctx), errLeft) {
		return err
	}
	if s.job == "" {
		s.say("left before the job was accepted; `paddock ls` shows it if it was")
	} else {
		s.say("left; the job goes on being canceled: paddock get %s", s.job)
	}
	return exitError{exitCanceled}
}

// interrupts cancels the job at the first signal and leaves at the second.
func (s *session) interrupts(ctx context.Context, signals <-chan os.Signal, leave context.CancelCauseFunc) {
	canceled := make(chan struct{})
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		if n > 0 {
			s.sent(canceled)
			leave(errLeft)
			return
		}
		close(s.canceled)
		s.say("canceling; once more to leave at once")
		go func() {
			defer close(canceled)
			s.cancel(ctx)
		}()
	}
}

// leaveWithin is how long a cancel that is on its way is waited for by who leaves: it takes milliseconds where anybody answers.
const leaveWithin = time.Second

// sent waits until the cancel has been taken: whoever leaves is told that the job goes on being canceled.
func (s *session) sent(canceled <-chan struct{}) {
	select {
	case <-s.accepted:
	default:
		return // there is no job yet
	}
	select {
	case <-canceled:
	case <-time.After(leaveWithin):
	}
}

func (s *session) cancel(ctx context.Context) {
	select {
	case <-s.accepted:
	case <-ctx.Done():
		return
	}
	if _, err := s.c.Cancel(ctx, s.job); err != nil && ctx.Err() == nil {
		s.say("cancel: %v", err)
	}
}

// feedWithin bounds how long a program may leave its input unread: longer than any may run. Without a bound of ours the client has its own,
// of a request that is answered at once.
const feedWithin = 25 * time.Hour

// feed passes standard input on. It stays in its read when the job ends; the process's end ends it.
func (s *session) feed(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, feedWithin)
	defer cancel()
	to := s.c.Stdin(ctx, s.job)
	_, err := io.Copy(to, s.in)
	if err == nil {
		_ = to.Close() // a program that has ended takes no end of input
		return
	}
	if _, refused := errors.AsType[*jobs.Error](err); !refused && ctx.Err() == nil { // a program need not read all of its input
		s.say("standard input: %v; the program gets no more of it", err)
	}
}

// viewer shows a job's events to people.
type viewer struct {
	out, err io.Writer
	attempt  int
}

func (v *viewer) show(e jobs.Event) error {
	if e.Attempt != v.attempt && v.attempt != 0 && e.Attempt > 1 {
		say("attempt %d", e.Attempt)
	}
	v.attempt = e.Attempt
	for _, p := range e.Ports {
		at := p.Host
		if p.URL != "" {
			at += " and " + p.URL
		}
		say("port %d is at %s on the worker's host", p.Guest, at)
	}
	if e.Type == jobs.EventLost {
		say("%s", lost(e.Lost))
	}
	if e.Type != jobs.EventOutput {
		return nil
	}
	w := v.out
	if e.Stream == jobs.Stderr {
		w = v.err
	}
	_, err := w.Write(e.Data())
	if e.Truncated {
		say("%s truncated at its limit", e.Stream)
	}
	return err
}

func lost(l *jobs.Lost) string {
	if l == nil || l.Events == 0 {
		return "what was here is not kept any more"
	}
	return fmt.Sprintf("%d events that were here are not kept any more", l.Events)
}

// save writes artifacts below a directory; a path that leads out of it is refused.
func (s *session) save(ctx context.Context, r *jobs.Result) error {
	if s.artifacts == "" || len(r.Artifacts) == 0 {
		return nil
	}
	root, err := os.OpenRoot(s.artifacts)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing to lose
	for _, a := range r.Artifacts {
		name := strings.TrimPrefix(filepath.Clean("/"+a.Path), "/")
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("artifact %s: %w", a.Path, err)
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return fmt.Errorf("artifact %s: %w", a.Path, err)
		}
		if err := errors.Join(s.fetch(ctx, a, f), f.Close()); err != nil {
			return fmt.Errorf("artifact %s: %w", a.Path, err)
		}
	}
	return nil
}

func (s *session) fetch(ctx context.Context, a jobs.ArtifactResult, to io.Writer) error {
	if a.Object == nil {
		_, err := to.Write(a.Data())
		return err
	}
	r, err := s.c.GetObject(ctx, *a.Object)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, r)
	return errors.Join(err, r.Close())
}
