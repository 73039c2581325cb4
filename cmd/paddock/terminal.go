package main

// What only a terminal gets: colour, and lines that overwrite themselves.

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// fancy tells whether w is a terminal that may get more than plain text (https://no-color.org).
func fancy(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// styled gives s with a code of two digits: in a table, a column whose cells are all styled stays a column.
func styled(w io.Writer, code, s string) string {
	if !fancy(w) {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func bold(w io.Writer, s string) string   { return styled(w, "01", s) }
func dim(w io.Writer, s string) string    { return styled(w, "02", s) }
func red(w io.Writer, s string) string    { return styled(w, "31", s) }
func green(w io.Writer, s string) string  { return styled(w, "32", s) }
func yellow(w io.Writer, s string) string { return styled(w, "33", s) }

// progress shows what is being done: a line that overwrites itself on a terminal, a line a stage elsewhere.
type progress struct {
	mu    sync.Mutex
	fancy bool
	open  bool
}

func newProgress() *progress { return &progress{fancy: fancy(os.Stderr)} }

// stage says what is being done now.
func (p *progress) stage(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	if !p.fancy {
		say("%s", line)
		return
	}
	if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil && len(line) > width-12 && width > 20 {
		line = line[:width-12] + "…"
	}
	fmt.Fprint(os.Stderr, "\r\x1b[K"+dim(os.Stderr, "paddock: ")+line)
	p.open = true
}

// passing says what only somebody who watches wants to know.
func (p *progress) passing(format string, args ...any) {
	if p.fancy {
		p.stage(format, args...)
	}
}

// done takes the line that overwrites itself away.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
		p.open = false
	}
}
