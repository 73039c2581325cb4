package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

const (
	// writeWithin is how long a piece may take to be written: whoever takes less than half a KiB a second is left, and may come back for the rest.
	writeWithin = 30 * time.Second
	// piece is how much that is for. A result may have a MiB, and somebody on a slow line would never have seen it whole if it had to be
	// written in one go.
	piece = 16 << 10
)

// writer writes server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
type writer struct {
	to     http.ResponseWriter
	ctl    *http.ResponseController
	within time.Duration
	b      bytes.Buffer
}

func newWriter(to http.ResponseWriter, within time.Duration) *writer {
	return &writer{to: to, ctl: http.NewResponseController(to), within: within}
}

// event writes one with its place as id, which is sent back as Last-Event-ID.
func (w *writer) event(e *jobs.Event) error {
	w.b.Reset()
	fmt.Fprintf(&w.b, "id: %s\n", eventID(e.Attempt, e.Seq))
	if !strings.ContainsAny(string(e.Type), "\r\n") { // no type that there is; a line of its own making would be a field
		fmt.Fprintf(&w.b, "event: %s\n", e.Type)
	}
	w.b.WriteString("data: ")
	enc := json.NewEncoder(&w.b) // one line: JSON has its line ends escaped
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return err
	}
	w.b.WriteByte('\n')
	return w.flush()
}

// retry says how long to wait before coming back.
func (w *writer) retry(after time.Duration) error {
	w.b.Reset()
	fmt.Fprintf(&w.b, "retry: %d\n\n", after.Milliseconds())
	return w.flush()
}

// comment writes something that is nothing.
func (w *writer) comment() error {
	w.b.Reset()
	w.b.WriteString(":\n\n")
	return w.flush()
}

func (w *writer) flush() error {
	for rest := w.b.Bytes(); len(rest) > 0; {
		n := min(len(rest), piece)
		if err := w.ctl.SetWriteDeadline(time.Now().Add(w.within)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		if _, err := w.to.Write(rest[:n]); err != nil {
			return err
		}
		if err := w.ctl.Flush(); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}
