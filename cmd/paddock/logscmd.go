package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func logsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "logs JOB", Short: "Print a job's output, from its first byte", Args: arguments(1, 1),
		Long: "Prints a job's output, what its program wrote to standard output and to standard error each to its own. With -f it goes on until the\n" +
			"job ends, and takes up where it was when the server comes back. --after goes on from an event whose attempt and seq are known, those of\n" +
			"the last line of -o json, say. What is not kept any more is told of. The exit code is 0 however the job ended.",
	}
	flags := addClientFlags(c)
	completeJobs(c, flags, anyState)
	follow := c.Flags().BoolP("follow", "f", false, "go on until the job ends")
	attempt := c.Flags().Int("attempt", 0, "this attempt's output; 0 means all")
	after := c.Flags().String("after", "", "ATTEMPT.SEQ of the last event that has been seen; what follows it is printed")
	out := addChoice(c, "output", "o", "text", "text prints the output, json an event a line, yaml an event a document", "text", "json", "yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		if *attempt < 0 {
			return fmt.Errorf("--attempt %d: want 1 or more, or 0 for all", *attempt)
		}
		from, err := position(*after)
		if err != nil {
			return err
		}
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		l := &logs{c: cl, job: args[0], after: from, seen: from.Attempt, format: *out, attempt: *attempt, to: c.OutOrStdout(), shown: viewer{out: c.OutOrStdout(), err: c.ErrOrStderr()}}
		printed := l.soFar
		if *follow {
			printed = l.whole
		}
		if err := printed(c.Context()); err != nil {
			return err
		}
		if l.attempt > l.seen {
			return fmt.Errorf("job %s has no attempt %d; there have been %d", l.job, l.attempt, l.seen)
		}
		return nil
	}
	return c
}

// position reads ATTEMPT.SEQ; empty is the beginning.
func position(s string) (p client.Position, err error) {
	if s == "" {
		return p, nil
	}
	attempt, seq, ok := strings.Cut(s, ".")
	if p.Attempt, err = strconv.Atoi(attempt); err == nil && ok {
		p.Seq, err = strconv.ParseInt(seq, 10, 64)
	}
	if err != nil || !ok || p.Attempt < 0 || p.Seq < 0 {
		return p, fmt.Errorf("--after %q: want an event's attempt and seq with a dot between, like 1.42", s)
	}
	return p, nil
}

// logs prints a job's events.
type logs struct {
	c       *client.Client
	job     string
	after   client.Position
	format  string
	attempt int // 0: all
	seen    int // the latest attempt that there are events of
	to      io.Writer
	shown   viewer
}

// follow prints the events until the last, or as long as more says so.
func (l *logs) follow(ctx context.Context, more func(jobs.Event) bool) error {
	for e, err := range l.c.Follow(ctx, l.job, l.after) {
		if err != nil {
			return hint(err)
		}
		if !more(e) {
			return nil
		}
		l.seen = max(l.seen, e.Attempt)
		if l.attempt != 0 && e.Attempt != l.attempt {
			continue
		}
		if err := l.print(e); err != nil {
			return err
		}
	}
	return nil
}

// whole prints the events up to the job's end, which may be yet to come.
func (l *logs) whole(ctx context.Context) error {
	return l.follow(ctx, func(jobs.Event) bool { return true })
}

const (
	// quietEnough is how long no event comes when all that there are have come.
	quietEnough = time.Second
	// firstWithin is how long the first may take of a job that runs, which has one: a dispatcher that has much to do answers late.
	firstWithin = 15 * time.Second
)

var errCaughtUp = errors.New("no event for a while")

// soFar prints the events that there are. Of a job that goes on, its stream tells no end: it is where nothing comes for a moment, or
// where an event is younger than the question.
func (l *logs) soFar(ctx context.Context) error {
	j, err := l.c.Get(ctx, l.job)
	if err != nil {
		return hint(err)
	}
	if j.State.Terminal() {
		return l.whole(ctx)
	}
	asked := time.Now()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	first := quietEnough
	if j.State == jobs.StateRunning {
		first = firstWithin
	}
	quiet := time.AfterFunc(first, func() { stop(errCaughtUp) })
	defer quiet.Stop()
	err = l.follow(ctx, func(e jobs.Event) bool {
		quiet.Reset(quietEnough)
		return e.Time.Before(asked)
	})
	if errors.Is(context.Cause(ctx), errCaughtUp) {
		return nil
	}
	return err
}

func (l *logs) print(e jobs.Event) error {
	switch l.format {
	case "text":
		return l.shown.show(e)
	case "json": // a line each, for whoever reads while they come
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = l.to.Write(append(b, '\n'))
		return err
	}
	if _, err := io.WriteString(l.to, "---\n"); err != nil {
		return err
	}
	return show(l.to, l.format, e, nil)
}
