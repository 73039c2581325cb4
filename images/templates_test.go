package images_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// A client can ask for machines of any size: what is kept of them on disk is bounded, and the image's own template stays.
func TestTemplatesOfOddSizesGo(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const kept = 16
		s := open(t)
		publish(t, s, "x", "1")
		publish(t, s, "y", "1")
		boots := 0
		d := newDriver()
		d.boots = func() { boots++ }
		h := &images.Host{Store: s, Driver: d}
		get := func(image string, memory int) string {
			time.Sleep(time.Second) // the bubble's: each is used later than the one before
			_, key, err := h.Template(t.Context(), image, jobs.Shape{Resources: jobs.Resources{MemoryMiB: memory}})
			must(t, err)
			return key
		}
		want := []string{get("x", 0), get("y", 200)}
		var odd []string
		for i := range kept {
			odd = append(odd, get("x", 200+i))
		}
		odd = append(odd[2:], get("x", 200), get("x", 300)) // of the two used longest ago one is used again: the other goes
		want = append(want, odd...)
		slices.Sort(want)
		if diff := cmp.Diff(want, files(t, s, "templates")); diff != "" {
			t.Errorf("templates (-want +got):\n%s", diff)
		}
		before := boots
		get("x", 0)
		get("x", 300)
		if boots != before {
			t.Error("one that was kept is built again")
		}
		if get("x", 201); boots != before+1 {
			t.Error("one that is gone is not built again")
		}
	})
}

// One that another opens just now, who holds its lock, is not taken from under it.
func TestTemplateInUseStays(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := open(t)
		publish(t, s, "x", "1")
		h := &images.Host{Store: s, Driver: newDriver()}
		get := func(memory int) string {
			time.Sleep(time.Second)
			tmpl, _, err := h.Template(t.Context(), "x", jobs.Shape{Resources: jobs.Resources{MemoryMiB: memory}})
			must(t, err)
			return tmpl.Dir
		}
		oldest := get(200)
		release, err := s.Lock(t.Context(), "template-"+files(t, s, "templates")[0])
		must(t, err)
		for i := range 20 {
			get(201 + i)
		}
		if _, err := os.Stat(oldest); err != nil {
			t.Error(err)
		}
		release()
		get(300)
		if _, err := os.Stat(oldest); !os.IsNotExist(err) {
			t.Errorf("still there: %v", err)
		}
	})
}
