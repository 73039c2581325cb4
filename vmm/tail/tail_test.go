package tail_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/vmm/tail"
)

// drained gives what is kept of a text.
func drained(t *testing.T, text []byte) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		_, _ = w.Write(text)
		w.Close()
	}()
	var tl tail.Tail
	tl.Drain(r)
	return tl.String()
}

func TestTail(t *testing.T) {
	var long bytes.Buffer
	for i := range 10_000 {
		fmt.Fprintf(&long, "line %d\n", i)
	}
	got := drained(t, long.Bytes())
	if !strings.HasPrefix(got, "line ") || !strings.HasSuffix(got, "line 9998\nline 9999\n") || len(got) > 16<<10 || len(got) < 15<<10 {
		t.Errorf("%d bytes, from %.20q to %q", len(got), got, got[max(0, len(got)-20):])
	}
	for in, want := range map[string]string{
		"":                           "",
		"no end of line":             "no end of line",
		"\x1b[31mred\x07\n\ttab\r\n": "[31mred\n\ttab\n",
		"bad \xff\xfe utf-8\n":       "bad ? utf-8\n",
	} {
		if got := drained(t, []byte(in)); got != want {
			t.Errorf("%q is kept as %q, want %q", in, got, want)
		}
	}
}
