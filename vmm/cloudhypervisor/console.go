package cloudhypervisor

import (
	"os"
	"strings"
	"sync"
	"unicode"
)

// tailBytes is how much of the console, and of what the VMM says, is kept: enough for a kernel panic's trace.
const tailBytes = 16 << 10

// tail keeps the last bytes of a stream that somebody else, a guest even, writes as much to as they like.
type tail struct {
	mu  sync.Mutex
	buf []byte // at most twice tailBytes; the last of it count
	cut bool
}

// drain reads f to its end, so that whoever writes to it is never blocked for long.
func (t *tail) drain(f *os.File) {
	buf := make([]byte, 4<<10)
	for {
		n, err := f.Read(buf)
		t.write(buf[:n])
		if err != nil {
			return
		}
	}
}

func (t *tail) write(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*tailBytes {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailBytes:]...)
		t.cut = true
	}
}

// String gives whole lines of printable text.
func (t *tail) String() string {
	t.mu.Lock()
	s, cut := string(t.buf[max(0, len(t.buf)-tailBytes):]), t.cut || len(t.buf) > tailBytes
	t.mu.Unlock()
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
