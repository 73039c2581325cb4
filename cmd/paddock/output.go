package main

// What paddock prints, and where. The rules:
//   - Standard output carries what was asked for: the program's own output, records, tables. Nothing else.
//   - Everything else goes to standard error and begins with "paddock: ". No capital at the start, no period at the end.
//   - -o json and -o yaml print the contract's own objects, whole; a table is for people and may change.
//   - Colour and lines that overwrite themselves only on a terminal, and not with NO_COLOR; a pipe gets plain lines.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/jobs"
)

// Exit codes of `paddock run` and `submit --wait` where the program has none of its own; docs/cli.md lists them.
const (
	exitFailure     = 125 // ours: nothing ran, or we failed
	exitNotFound    = 127 // the program does not exist
	exitTimeLimit   = 124
	exitMemoryLimit = 137
	exitLimit       = 123 // output, processes, disk, file size
	exitCanceled    = 130
)

// say prints a line for people to standard error.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "paddock: "+format+"\n", args...)
}

// complain prints an error, its faults a line each.
func complain(err error) {
	var e *jobs.Error
	if !errors.As(err, &e) || len(e.Faults) == 0 {
		say("%v", err)
		return
	}
	say("%s:", e.Message)
	for _, f := range e.Faults {
		at := f.Path
		if at != "" {
			at += ": "
		}
		fmt.Fprintf(os.Stderr, "  %s%s\n", at, f.Message)
	}
}

// outputFlag adds -o to a command.
func outputFlag(c *cobra.Command) *string {
	return c.Flags().StringP("output", "o", "text", "output format: text, json or yaml")
}

// show prints v as asked, or has text print it.
func show(w io.Writer, format string, v any, text func(io.Writer) error) error {
	switch format {
	case "text", "":
		return text(w)
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	case "yaml":
		b, err := json.Marshal(v) // the contract's names are its JSON names
		if err != nil {
			return err
		}
		var tree any
		if err := yaml.Unmarshal(b, &tree); err != nil {
			return err
		}
		e := yaml.NewEncoder(w)
		e.SetIndent(2)
		return errors.Join(e.Encode(tree), e.Close())
	}
	return fmt.Errorf("output format %q: want text, json or yaml", format)
}

// progress shows what is being done: a line that overwrites itself on a terminal, a line a stage elsewhere.
type progress struct {
	mu   sync.Mutex
	tty  bool
	open bool
}

func newProgress() *progress {
	return &progress{tty: term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("NO_COLOR") == ""}
}

func (p *progress) stage(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	if !p.tty {
		say("%s", line)
		return
	}
	if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil && len(line) > width-12 && width > 20 {
		line = line[:width-12] + "…"
	}
	fmt.Fprintf(os.Stderr, "\r\x1b[Kpaddock: %s", line)
	p.open = true
}

// done ends the line that overwrites itself.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
		p.open = false
	}
}

// exitOf says in a line how a job ended, where that is not plain, and gives the exit code to leave with.
func exitOf(r jobs.Result) error {
	switch r.Ending {
	case jobs.Exited:
		if r.ExitCode != nil && *r.ExitCode != 0 {
			return exitError{*r.ExitCode}
		}
		return nil
	case jobs.Signaled:
		say("ended by %s", r.Signal)
		return exitError{128 + signalNumber(r.Signal)}
	}
	line := strings.ReplaceAll(string(r.Ending), "_", " ")
	if r.Reason != "" {
		line += ": " + r.Reason
	}
	say("%s", line)
	switch r.Ending {
	case jobs.TimeLimit:
		return exitError{exitTimeLimit}
	case jobs.MemoryLimit:
		return exitError{exitMemoryLimit}
	case jobs.OutputLimit, jobs.PIDsLimit, jobs.DiskLimit, jobs.FileLimit:
		return exitError{exitLimit}
	case jobs.StartFailed:
		return exitError{exitNotFound}
	case jobs.Canceled:
		return exitError{exitCanceled}
	}
	return exitError{exitFailure}
}
