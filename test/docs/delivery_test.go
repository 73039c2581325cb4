package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// shows matches the tests that docs/delivery.md names for a promise, and the package that has them.
var shows = regexp.MustCompile("((?:`Test[A-Za-z0-9]+`(?:, )?)+) \\(([a-z0-9/]+)\\)")

// TestDelivery: every promise names tests that show it, and they are there.
func TestDelivery(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("docs", "delivery.md"))
	if err != nil {
		t.Fatal(err)
	}
	promises, _, _ := strings.Cut(string(b), "\n## ")
	n := 0
	for line := range strings.SplitSeq(promises, "\n") {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| promise ") {
			continue
		}
		n++
		found := shows.FindAllStringSubmatch(line, -1)
		if len(found) == 0 {
			t.Errorf("no test shows: %.80s", line)
		}
		for _, m := range found {
			for name := range strings.SplitSeq(m[1], ", ") {
				if name = strings.Trim(name, "`"); !hasTest(t, m[2], name) {
					t.Errorf("there is no %s in %s", name, m[2])
				}
			}
		}
	}
	if n < 8 {
		t.Errorf("%d promises were found", n)
	}
}

// hasTest tells whether a package has a test of that name.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "func "+name+"(t *testing.T)") {
			return true
		}
	}
	return false
}
