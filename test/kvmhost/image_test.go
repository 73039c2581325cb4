package kvmhost

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// asRoot skips, or fails where it has to be root: a build has namespaces of its own.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") != "" {
		t.Fatal("needs root")
	}
	t.Skip("SKIPPED: needs root: no build is tried here")
}

// Of several that want the image one builds it, and all get the same, whole.
func TestImageIsBuiltOnce(t *testing.T) {
	asRoot(t)
	cache, seen := t.TempDir(), filepath.Join(t.TempDir(), "seen")
	r := recipe{script: []byte("mkdir work; until test -e " + seen + "; do sleep 0.02; done; echo built >>disk")} // until somebody waits for it
	left := filepath.Join(cache, "building-"+r.key())
	if err := os.Mkdir(left, 0o755); err != nil { // by a build that was killed
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, "disk"), []byte("half\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	built, waited := 0, 0
	say := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.HasPrefix(what, "building"):
			built++
		case strings.HasPrefix(what, "waiting"):
			waited++
			if err := os.WriteFile(seen, nil, 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			img, err := r.image(ctx, cache, say)
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(img.Disk()); err != nil || string(b) != "built\n" {
				t.Errorf("disk: %q, %v", b, err)
			}
		})
	}
	wg.Wait()
	if built != 1 || waited == 0 {
		t.Errorf("%d built, %d waited", built, waited)
	}
	wantNothing(t, cache)
}

// A build that fails, or is interrupted, says why and leaves nothing.
func TestImageThatIsNotBuilt(t *testing.T) {
	asRoot(t)
	cache := t.TempDir()
	for _, tt := range []struct {
		script string
		within time.Duration
		want   string
	}{
		{"echo half >disk; echo no mirror >&2; false", time.Minute, "no mirror"},
		{"echo half >disk; sleep 600", 5 * time.Second, "deadline exceeded"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), tt.within)
		img, err := recipe{script: []byte(tt.script)}.image(ctx, cache, func(string) {})
		cancel()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, %v", tt.script, img, err)
		}
		wantNothing(t, cache)
	}
}

func wantNothing(t *testing.T, cache string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(cache, "building-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %q: %v", left, err)
	}
}
