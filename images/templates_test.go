package images_test

import (
	"errors"
	"os"
	"path/filepath"
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

// What a host tells of its templates is what need not be built: after each thing that happens to them.
func TestTemplatesTold(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := open(t)
		publish(t, s, "x", "1")
		publish(t, s, "y", "1")
		d := newDriver()
		h := &images.Host{Store: s, Driver: d, Caps: caps}
		own := jobs.Shape{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 128}}
		grows := jobs.Shape{Resources: jobs.Resources{VCPUs: 2, MemoryMiB: 256}, Headroom: jobs.Resources{VCPUs: 4, MemoryMiB: 512}}
		var dir string
		get := func(image string, shape jobs.Shape) {
			t.Helper()
			time.Sleep(time.Second)
			tmpl, _, err := h.Template(t.Context(), image, shape)
			must(t, err)
			dir = tmpl.Dir
		}
		tells := func(what string, h *images.Host, want map[string][]jobs.Shape) {
			t.Helper()
			got := h.Templates()
			for _, of := range got {
				slices.SortFunc(of, func(a, b jobs.Shape) int { return a.MemoryMiB - b.MemoryMiB })
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		tells("none is built", h, map[string][]jobs.Shape{})
		get("x", jobs.Shape{})
		get("x", grows)
		get("y", jobs.Shape{})
		all := map[string][]jobs.Shape{"x": {own, grows}, "y": {own}}
		tells("three are built", h, all)
		tells("another process", &images.Host{Store: reopen(t, s), Driver: d, Caps: caps}, all)

		other := caps
		other.CPU = "host"
		tells("another processor", &images.Host{Store: s, Driver: d, Caps: other}, map[string][]jobs.Shape{})
		named := newDriver()
		named.name = "other"
		tells("another driver", &images.Host{Store: s, Driver: named, Caps: caps}, map[string][]jobs.Shape{})
		other.Accel = "none"
		tells("a driver that needs none", &images.Host{Store: s, Driver: d, Caps: other}, nil)

		var odd []jobs.Shape
		for i := range 16 { // as many as are kept
			odd = append(odd, jobs.Shape{Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 300 + i}})
			get("x", odd[i])
		}
		tells("one has gone for others", h, map[string][]jobs.Shape{"x": append([]jobs.Shape{own}, odd...), "y": {own}})
		publish(t, s, "x", "2")
		tells("an image is built anew", h, map[string][]jobs.Shape{"y": {own}})
		get("x", jobs.Shape{})
		tells("and its template", h, map[string][]jobs.Shape{"x": {own}, "y": {own}})
		must(t, s.Remove(t.Context(), "y"))
		tells("an image is removed", h, map[string][]jobs.Shape{"x": {own}})

		flip(t, filepath.Join(dir, "memory"), 12345)
		h = &images.Host{Store: reopen(t, s), Driver: d, Caps: caps}
		tells("one is corrupt, and nobody has found out", h, map[string][]jobs.Shape{"x": {own}})
		d.boots = func() { tells("it was found out", h, map[string][]jobs.Shape{}) }
		d.bootErr = errors.New("no memory")
		if _, _, err := h.Template(t.Context(), "x", jobs.Shape{}); err == nil {
			t.Error("it was built of nothing")
		}
		tells("it could not be built anew", h, map[string][]jobs.Shape{})
		d.bootErr = nil
		get("x", jobs.Shape{})
		tells("it is built anew", h, map[string][]jobs.Shape{"x": {own}})
		must(t, os.Truncate(filepath.Join(dir, "paddock-template.json"), 50))
		tells("its manifest is cut", h, map[string][]jobs.Shape{})
	})
}
