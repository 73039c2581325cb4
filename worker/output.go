package worker

import (
	"bytes"
	"unicode/utf8"

	"github.com/paddockvm/paddock/jobs"
)

// cut gives how many bytes of b make the next chunk: at most n, and not half a UTF-8 sequence where a whole one fits.
func cut(b []byte, n int) int {
	if len(b) <= n {
		return len(b)
	}
	for i := n; i > n-utf8.UTFMax; i-- {
		if utf8.RuneStart(b[i]) {
			return i
		}
	}
	return n
}

// output is one stream of one step: it counts, keeps the head for the result, holds back half a UTF-8 sequence, and passes the rest on.
type output struct {
	events *stream
	step   int
	name   string

	head   []byte
	passed int64  // bytes that went on
	held   []byte // the beginning of a UTF-8 sequence, at most three bytes
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	if room := jobs.MaxResultOutput - len(o.head); room > 0 {
		o.head = append(o.head, b[:min(room, len(b))]...)
	}
	all := b
	if len(o.held) > 0 {
		all = append(o.held, b...)
	}
	keep := incomplete(all)
	if err := o.pass(all[:len(all)-keep]); err != nil {
		return 0, err
	}
	o.held = bytes.Clone(all[len(all)-keep:])
	return len(b), nil
}

func (o *output) pass(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := o.events.write(o.step, o.name, o.passed, b); err != nil {
		return err
	}
	o.passed += int64(len(b))
	return nil
}

// close passes on what was held back, and marks the stream where it was cut short.
func (o *output) close(dropped int64) (jobs.Output, error) {
	err := o.pass(o.held)
	o.held = nil
	if dropped > 0 {
		o.events.add(jobs.Event{Type: jobs.EventOutput, Step: o.step, Stream: o.name, Offset: o.passed, Truncated: true})
	}
	return jobs.Output{Content: jobs.ContentOf(o.head[:wholeRunes(o.head, o.passed)]), Bytes: o.passed, Truncated: dropped > 0, DroppedBytes: dropped}, err
}

// incomplete gives how many bytes at the end of b begin a UTF-8 sequence that may still be completed.
func incomplete(b []byte) int {
	for i := 1; i <= min(len(b), utf8.UTFMax-1); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}

// wholeRunes gives how much of the head to show: all of it, less a sequence that only the head's end cuts.
func wholeRunes(head []byte, total int64) int {
	if int64(len(head)) == total {
		return len(head)
	}
	return len(head) - incomplete(head)
}
