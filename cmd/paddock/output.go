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

	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/jobs"
)

// Exit codes of `paddock run` and `submit --wait` where the program has none of its own; docs/cli.md lists them.
const (
	exitFailure     = 125 // ours: nothing ran, or we failed
	exitNotFound    = 127 // the program does not exist
	exitTimeLimit   = 124
	exitMemoryLimit = 137
	exitLimit       = 123 // the program's own doing otherwise: output, processes, disk, file size, its machine's end, a file that is not there
	exitCanceled    = 130
)

// say prints a line for people to standard error.
func say(format string, args ...any) {
	fmt.Fprint(os.Stderr, dim(os.Stderr, "paddock: ")+fmt.Sprintf(format, args...)+"\n")
}

// complain prints an error, each of several on a line of its own, and the faults of a spec below it, after what was being done with it.
func complain(err error) {
	var e *jobs.Error
	if !errors.As(err, &e) || len(e.Faults) == 0 {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			say("%s", line)
		}
		return
	}
	said, wraps := strings.CutSuffix(err.Error(), e.Error())
	if !wraps {
		said = ""
	}
	say("%s%s:", said, e.Message)
	for _, f := range e.Faults {
		at := f.Path
		if at != "" {
			at = bold(os.Stderr, at) + ": "
		}
		fmt.Fprintf(os.Stderr, "  %s%s\n", at, f.Message)
	}
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
		var tree yaml.Node // and it has them in the contract's order
		if err := yaml.Unmarshal(b, &tree); err != nil {
			return err
		}
		plain(&tree)
		e := yaml.NewEncoder(w)
		e.SetIndent(2)
		return errors.Join(e.Encode(&tree), e.Close())
	}
	return fmt.Errorf("output format %q: want text, json or yaml", format)
}

// plain takes JSON's braces and quotes off a tree; what needs quotes gets them back.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

// exitOf says in a line how a job ended, where that is not plain, and gives the exit code to leave with.
func exitOf(r jobs.Result) error {
	switch r.Ending {
	case jobs.Exited:
	case jobs.Signaled:
		say("ended by %s", r.Signal)
	default:
		line := strings.ReplaceAll(string(r.Ending), "_", " ")
		if r.Reason != "" && r.Reason != line {
			line += ": " + r.Reason
		}
		say("%s", line)
	}
	if code := exitCode(r); code != 0 {
		return exitError{code}
	}
	return nil
}

// exitCode is the program's own, or what stands for another ending.
func exitCode(r jobs.Result) int {
	switch r.Ending {
	case jobs.Exited:
		if r.ExitCode == nil {
			return 0
		}
		return *r.ExitCode
	case jobs.Signaled:
		return 128 + signalNumber(r.Signal)
	case jobs.TimeLimit:
		return exitTimeLimit
	case jobs.MemoryLimit:
		return exitMemoryLimit
	case jobs.StartFailed:
		return exitNotFound
	case jobs.Canceled:
		return exitCanceled
	}
	if r.Ending.Class() == jobs.ClassUser {
		return exitLimit
	}
	return exitFailure
}
