// Package tail keeps the end of what somebody else writes as much of as they like: a guest's console, a VMM's complaints. It imports the
// standard library only.
package tail

import (
	"os"
	"strings"
	"sync"
	"unicode"
)

// size is how much is kept: enough for a kernel panic's trace.
const size = 16 << 10

// Tail is the last 16 KiB of a stream. The zero value is ready.
type Tail struct {
	mu   sync.Mutex
	buf  []byte // a ring once it is full
	next int
}

// Drain reads f to its end, so that whoever writes to it is never blocked for long.
func (t *Tail) Drain(f *os.File) {
	buf := make([]byte, 4<<10)
	for {
		n, err := f.Read(buf)
		t.write(buf[:n])
		if err != nil {
			return
		}
	}
}

func (t *Tail) write(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(p) > 0 {
		if len(t.buf) < size {
			n := min(len(p), size-len(t.buf))
			t.buf = append(t.buf, p[:n]...)
			p = p[n:]
			continue
		}
		n := copy(t.buf[t.next:], p)
		t.next = (t.next + n) % size
		p = p[n:]
	}
}

// String gives whole lines of printable text: what a guest prints does not steer the terminal of whoever reads it.
func (t *Tail) String() string {
	t.mu.Lock()
	b := append(append(make([]byte, 0, len(t.buf)), t.buf[t.next:]...), t.buf[:t.next]...)
	cut := len(t.buf) == size
	t.mu.Unlock()
	s := string(b)
	if _, rest, ok := strings.Cut(s, "\n"); ok && cut {
		s = rest
	}
	// What a guest prints must not steer the terminal of whoever reads it.
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, "?"))
}
