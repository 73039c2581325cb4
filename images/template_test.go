package images_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/inproc"
)

var caps = vmm.Caps{Version: "1", Accel: "tcg", Machine: "pc-1", CPU: "max"}

// The key covers all that a template depends on, and the template stays as long as that does.
func TestTemplateKey(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := open(t)
		publish(t, s, "x", "1")
		boots := 0
		get := func(change func(d *driver, h *images.Host, r *jobs.Resources)) (string, vmm.Template) {
			d := newDriver()
			d.boots = func() { boots++ }
			h, r := &images.Host{Store: reopen(t, s), Driver: d, Caps: caps}, jobs.Resources{}
			change(d, h, &r)
			tmpl, key, err := h.Template(t.Context(), "x", jobs.Shape{Resources: r})
			must(t, err)
			return key, tmpl
		}
		first, tmpl := get(func(*driver, *images.Host, *jobs.Resources) {})
		seen := map[string]string{first: "nothing changed"}
		if tmpl.Boot.VCPUs != 1 || tmpl.Boot.MemoryMiB != 128 {
			t.Errorf("the image's own size: %+v", tmpl.Boot)
		}
		for name, change := range map[string]func(d *driver, h *images.Host, r *jobs.Resources){
			"nothing changed":      func(*driver, *images.Host, *jobs.Resources) {},
			"the image's own size": func(_ *driver, _ *images.Host, r *jobs.Resources) { *r = jobs.Resources{VCPUs: 1, MemoryMiB: 128} },
			"the host's other caps": func(_ *driver, h *images.Host, _ *jobs.Resources) {
				h.Caps.BootProbe, h.Caps.Degraded = 1, []string{"x"}
			},
		} {
			before := boots
			if key, _ := get(change); key != first || boots != before {
				t.Errorf("%s: another template", name)
			}
		}
		for name, change := range map[string]func(d *driver, h *images.Host, r *jobs.Resources){
			"driver":       func(d *driver, _ *images.Host, _ *jobs.Resources) { d.name = "other" },
			"version":      func(_ *driver, h *images.Host, _ *jobs.Resources) { h.Caps.Version = "2" },
			"accel":        func(_ *driver, h *images.Host, _ *jobs.Resources) { h.Caps.Accel = "kvm" },
			"machine":      func(_ *driver, h *images.Host, _ *jobs.Resources) { h.Caps.Machine = "pc-2" },
			"cpu":          func(_ *driver, h *images.Host, _ *jobs.Resources) { h.Caps.CPU = "host" },
			"vcpus":        func(_ *driver, _ *images.Host, r *jobs.Resources) { r.VCPUs = 2 },
			"memory":       func(_ *driver, _ *images.Host, r *jobs.Resources) { r.MemoryMiB = 129 },
			"image's file": func(*driver, *images.Host, *jobs.Resources) { publish(t, s, "x", "2") },
			"command line": republish(t, s, func(m *images.Manifest) { m.Cmdline = "debug" }),
			"agent":        republish(t, s, func(m *images.Manifest) { m.Agent = "another" }),
			"warm-up":      republish(t, s, func(m *images.Manifest) { m.Recipe.Warm = nil }),
			"environment":  republish(t, s, func(m *images.Manifest) { m.Recipe.Env = map[string]string{"A": "b"} }),
			"format":       republish(t, s, func(m *images.Manifest) { m.Recipe.Description = "the last" }),
		} {
			before := boots
			key, _ := get(change)
			if seen[key] != "" || boots != before+1 {
				t.Errorf("%s: the same template as %q", name, seen[key])
			}
			seen[key] = name
			publish(t, s, "x", "1")
		}
	})
}

// With KVM a guest has seen the host's processor, as its kernel lets it: neither a host that has come back with another, nor one to which the store
// was copied, uses what was made before.
func TestTemplateOfAnotherHost(t *testing.T) {
	for accel, want := range map[string]int{"kvm": 2, "tcg": 1} {
		t.Run(accel, func(t *testing.T) {
			s := open(t)
			publish(t, s, "x", "1")
			boots := 0
			d := newDriver()
			d.boots = func() { boots++ }
			get := func() (key string, told int) {
				h := &images.Host{Store: reopen(t, s), Driver: d, Caps: caps}
				h.Caps.Accel = accel
				_, key, err := h.Template(t.Context(), "x", jobs.Shape{})
				if err != nil {
					t.Error(err)
				}
				return key, len(h.Templates()["x"])
			}
			first, _ := get()
			onThread(func() {
				const uname26 = 0x0020000 // UNAME26 of personality(2): the kernel says that it is a 2.6
				if _, _, errno := syscall.RawSyscall(syscall.SYS_PERSONALITY, uname26, 0, 0); errno != 0 {
					t.Errorf("personality: %v", errno)
					return
				}
				if key, told := get(); (key == first) != (want == 1) || told != 1 {
					t.Errorf("with another kernel: the same template is %t, %d are told of", key == first, told)
				}
			})
			if again, _ := get(); again != first || boots != want {
				t.Errorf("%d were built, want %d; here the same is %t", boots, want, again == first)
			}
		})
	}
}

func republish(t *testing.T, s *images.Store, change func(*images.Manifest)) func(*driver, *images.Host, *jobs.Resources) {
	return func(*driver, *images.Host, *jobs.Resources) {
		m, err := manifest(s, "x", "1")
		must(t, err)
		change(&m)
		_, err = s.Publish(m)
		must(t, err)
	}
}

// Whatever happened to a template's files, what a host gives is whole: found before it is used, and built anew.
func TestCorruptTemplate(t *testing.T) {
	const manifestFile = "paddock-template.json"
	for name, harm := range map[string]func(t *testing.T, dir string){
		"memory flipped":   func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "memory"), 12345) },
		"state flipped":    func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "state"), 0) },
		"memory cut":       func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "memory"), 4096)) },
		"memory emptied":   func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "memory"), 0)) },
		"state removed":    func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "state"))) },
		"manifest cut":     func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, manifestFile), 50)) },
		"manifest removed": func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, manifestFile))) },
		"without files": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, manifestFile), `"files": {`, `"files": {}, "x": {`)
		},
		"another's": func(t *testing.T, dir string) { edit(t, filepath.Join(dir, manifestFile), `"key": "`, `"key": "0`) },
		"another driver's": func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, manifestFile), `"driver": "fake"`, `"driver": "real"`)
		},
		"a directory for memory": func(t *testing.T, dir string) { instead(t, filepath.Join(dir, "memory"), "a directory") },
		"a pipe for state":       func(t *testing.T, dir string) { instead(t, filepath.Join(dir, "state"), "a pipe") },
		"a device for memory":    func(t *testing.T, dir string) { instead(t, filepath.Join(dir, "memory"), "a device") },
		"a pipe for manifest":    func(t *testing.T, dir string) { instead(t, filepath.Join(dir, manifestFile), "a pipe") },
		"a directory for manifest": func(t *testing.T, dir string) {
			instead(t, filepath.Join(dir, manifestFile), "a directory")
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := open(t)
				publish(t, s, "x", "1")
				h := &images.Host{Store: s, Driver: newDriver()}
				first, key, err := h.Template(t.Context(), "x", jobs.Shape{})
				must(t, err)
				want, err := os.ReadFile(filepath.Join(first.Dir, "memory"))
				must(t, err)
				harm(t, first.Dir)
				boots := 0
				d := newDriver()
				d.boots = func() { boots++ }
				h = &images.Host{Store: reopen(t, s), Driver: d}
				for range 2 {
					again, keyAgain, err := h.Template(t.Context(), "x", jobs.Shape{})
					must(t, err)
					got, err := os.ReadFile(filepath.Join(again.Dir, "memory"))
					must(t, err)
					if keyAgain != key || boots != 1 || !cmp.Equal(got, want) {
						t.Errorf("boots %d, key %s for %s, %d bytes of memory", boots, keyAgain, key, len(got))
					}
				}
			})
		})
	}
}

func instead(t *testing.T, file, what string) {
	must(t, os.Remove(file))
	must(t, strange[what](file))
}

// A template of which a process has left only a part, because it died while it was removing it, is built anew by one that has used it before, too.
func TestHalfRemovedTemplate(t *testing.T) {
	for _, file := range []string{"memory", "state"} {
		t.Run(file, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := open(t)
				publish(t, s, "x", "1")
				boots := 0
				d := newDriver()
				d.boots = func() { boots++ }
				h := &images.Host{Store: s, Driver: d}
				for range 2 {
					tmpl, _, err := h.Template(t.Context(), "x", jobs.Shape{})
					must(t, err)
					must(t, os.Remove(filepath.Join(tmpl.Dir, file)))
				}
				if boots != 2 {
					t.Errorf("it was built %d times", boots)
				}
			})
		})
	}
}

// What a process leaves of a template that dies while it removes it goes with the next that is built.
func TestTemplateThatWasBeingRemoved(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := open(t)
		publish(t, s, "x", "1")
		h := &images.Host{Store: s, Driver: newDriver()}
		tmpl, key, err := h.Template(t.Context(), "x", jobs.Shape{})
		must(t, err)
		must(t, os.Rename(tmpl.Dir, tmpl.Dir+".rm"))
		_, _, err = h.Template(t.Context(), "x", jobs.Shape{})
		must(t, err)
		if diff := cmp.Diff([]string{key}, files(t, s, "templates")); diff != "" {
			t.Error(diff)
		}
	})
}

func edit(t *testing.T, name, old, replacement string) {
	t.Helper()
	b, err := os.ReadFile(name)
	must(t, err)
	changed := strings.Replace(string(b), old, replacement, 1)
	if changed == string(b) {
		t.Fatalf("no %q in %s", old, b)
	}
	must(t, os.WriteFile(name, []byte(changed), 0o644))
}

// A store is a directory, and can be moved: nothing leads to where it was.
func TestTemplateOfAMovedStore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := open(t)
		publish(t, s, "x", "1")
		_, key, err := (&images.Host{Store: s, Driver: newDriver()}).Template(t.Context(), "x", jobs.Shape{})
		must(t, err)
		to := filepath.Join(t.TempDir(), "moved")
		must(t, os.Rename(s.Dir(), to))
		moved, err := images.Open(to)
		must(t, err)
		img, err := moved.Get("x")
		must(t, err)
		d := newDriver()
		d.boots = func() { t.Error("it was built again") }
		got, keyNow, err := (&images.Host{Store: moved, Driver: d}).Template(t.Context(), "x", jobs.Shape{})
		must(t, err)
		want := vmm.Template{Dir: filepath.Join(to, "templates", key), Driver: "fake", Boot: vmm.Boot{
			Kernel: img.Kernel, Initrd: img.Initrd, Root: img.Root, Scratch: img.Scratch, VCPUs: 1, MemoryMiB: 128,
		}}
		if diff := cmp.Diff(want, got); diff != "" || keyNow != key {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestFailingTemplate(t *testing.T) {
	sick := errors.New("no memory")
	for _, c := range []struct {
		name string
		harm func(*driver, *images.Host, *images.Manifest)
		want string
	}{
		{"boot", func(d *driver, _ *images.Host, _ *images.Manifest) { d.bootErr = sick }, "template of x: no memory"},
		{"warm-up fails", func(_ *driver, _ *images.Host, m *images.Manifest) {
			m.Recipe.Warm = []images.Warm{{Cmd: "true"}, {Cmd: "exit", Args: []string{"3"}}}
		}, `warm[1]: ["exit" "3"] ended with 3`},
		{"warm-up cannot run", func(_ *driver, _ *images.Host, m *images.Manifest) { m.Recipe.Warm = []images.Warm{{Cmd: "no-such"}} }, "warm[0]: "},
		{"snapshot", func(d *driver, _ *images.Host, _ *images.Manifest) { d.snapErr = sick }, "no memory"},
		{"nobody answers", func(d *driver, h *images.Host, _ *images.Manifest) { d.deafness, h.BootWithin = true, time.Minute }, "not booted and warmed within 1m0s"},
		{"a blob is corrupt", func(_ *driver, h *images.Host, m *images.Manifest) { flip(t, h.Store.Blob(m.Initrd), 0) }, "building it anew mends it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := open(t)
				d := newDriver()
				h := &images.Host{Store: s, Driver: d}
				m, err := manifest(s, "x", "1")
				must(t, err)
				c.harm(d, h, &m)
				_, err = s.Publish(m)
				must(t, err)
				if _, _, err := h.Template(t.Context(), "x", jobs.Shape{}); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("err = %v, want %q", err, c.want)
				}
				if left := append(files(t, s, "templates"), files(t, s, "tmp")...); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				publish(t, s, "x", "1")
				h.Driver = newDriver()
				if _, _, err := h.Template(t.Context(), "x", jobs.Shape{}); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		})
	}
}

func TestTemplatesOfOlderBuildsGo(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := open(t)
		publish(t, s, "x", "1")
		publish(t, s, "y", "1")
		h := &images.Host{Store: s, Driver: newDriver()}
		for _, r := range []jobs.Resources{{}, {MemoryMiB: 256}} {
			_, _, err := h.Template(t.Context(), "x", jobs.Shape{Resources: r})
			must(t, err)
		}
		_, ofY, err := h.Template(t.Context(), "y", jobs.Shape{})
		must(t, err)
		publish(t, s, "x", "2")
		_, ofX, err := h.Template(t.Context(), "x", jobs.Shape{})
		must(t, err)
		want := map[string]bool{ofX: true, ofY: true}
		got := map[string]bool{}
		for _, name := range files(t, s, "templates") {
			got[name] = true
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("templates (-want +got):\n%s", diff)
		}
	})
}

func TestDriverWithoutTemplates(t *testing.T) {
	s := open(t)
	publish(t, s, "x", "1")
	h := &images.Host{Store: s, Driver: inproc.New(nil), Caps: caps}
	got, key, err := h.Template(t.Context(), "x", jobs.Shape{Resources: jobs.Resources{MemoryMiB: 64}})
	want := vmm.Template{Driver: "inproc", Boot: vmm.Boot{VCPUs: 1, MemoryMiB: 64}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" || len(key) != 64 {
		t.Errorf("key %q, %v (-want +got):\n%s", key, err, diff)
	}
	if left := files(t, s, "templates"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	offered := h.Offered()
	if len(offered) != 1 || offered[0].Name != "x" || offered[0].Resources.MemoryMiB != 128 || h.Env("x") == nil || h.Env("none") != nil {
		t.Errorf("offered: %+v", offered)
	}
	if one, ok := h.Offer("x"); !ok || len(offered) == 1 && one != offered[0] {
		t.Errorf("x is offered: %v, as %+v", ok, one)
	}
	if _, ok := h.Offer("none"); ok {
		t.Error("an image that is not there is offered")
	}
}

// templateProcess is another process that wants the template of x, several times at once, and notes each boot in the file boots.
func templateProcess(dir string) {
	d := newDriver()
	d.boots = func() { note(filepath.Join(dir, "boots"), "boot\n") }
	s, err := images.Open(dir)
	if err != nil {
		panic(err)
	}
	h := &images.Host{Store: s, Driver: d}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			_, key, err := h.Template(context.Background(), "x", jobs.Shape{})
			note(filepath.Join(dir, "keys"), fmt.Sprintf("%s %v\n", key, err))
		})
	}
	all.Wait()
}

func note(file, line string) {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(line)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		panic(err)
	}
}

func TestTemplateIsBuiltOnceAmongProcesses(t *testing.T) {
	s := open(t)
	publish(t, s, "x", "1")
	self, err := os.Executable()
	must(t, err)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if out, err := exec.CommandContext(t.Context(), self, "template", s.Dir()).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	boots, err := os.ReadFile(filepath.Join(s.Dir(), "boots"))
	must(t, err)
	if string(boots) != "boot\n" {
		t.Errorf("built %d times", strings.Count(string(boots), "\n"))
	}
	keys, err := os.ReadFile(filepath.Join(s.Dir(), "keys"))
	must(t, err)
	if want := strings.Repeat(files(t, s, "templates")[0]+" <nil>\n", 9); string(keys) != want {
		t.Errorf("keys:\n%s", keys)
	}
}

// A process that runs for months remembers what is there, not all that ever was.
func TestWhatIsGoneIsForgotten(t *testing.T) {
	bubble.Test(t, func(t *testing.T) { // templates settle in its time
		s := open(t)
		h := &images.Host{Store: s, Driver: newDriver()}
		for i := range 20 {
			publish(t, s, "x", fmt.Sprint(i))
			publish(t, s, fmt.Sprint("y", i), "1")
			for _, name := range []string{"x", fmt.Sprint("y", i)} {
				_, _, err := h.Template(t.Context(), name, jobs.Shape{})
				must(t, err)
			}
			must(t, s.Remove(t.Context(), fmt.Sprint("y", i)))
			if _, err := s.Get(fmt.Sprint("y", i)); !errors.Is(err, images.ErrNoImage) {
				t.Error(err)
			}
		}
		_, _, err := h.Template(t.Context(), "x", jobs.Shape{})
		must(t, err)
		blobs, manifests := s.Remembered()
		if n := h.Opened(); n != 1 || blobs > 6 || manifests != 1 {
			t.Errorf("%d templates, %d blobs and %d images are remembered, of 1, 4 and 1", n, blobs, manifests)
		}
	})
}
