package kvmhost

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	if err := check(sets); err != nil {
		t.Error(err)
	}
	for _, s := range sets {
		tests, err := filepath.Glob(filepath.Join("..", "..", s.Package, "*_test.go"))
		if err != nil || len(tests) == 0 {
			t.Errorf("%s: no tests in %s: %v", s.Name, s.Package, err)
		}
		for _, name := range regexp.MustCompile(`Test\w+`).FindAllString(s.Run, -1) {
			if !defines(t, tests, name) { // all tests that begin so, where it is TestName.*
				t.Errorf("%s: there is no %s to run", s.Name, name)
			}
		}
		for name, without := range s.MaySkip {
			for _, v := range without {
				if v != CloudHypervisor && v != Landlock && v != Throwaway {
					t.Errorf("%s: %s may skip without %s", s.Name, name, v)
				}
			}
			top, _, _ := strings.Cut(name, "/") // it may be a subtest's
			if !defines(t, tests, top+"(") {
				t.Errorf("%s: there is no %s that may skip", s.Name, name)
			}
		}
	}
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join("..", "..", p)); err != nil {
			t.Error(err)
		}
	}
}

// defines tells whether one of the files defines a test that begins so.
func defines(t *testing.T, files []string, name string) bool {
	t.Helper()
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name) {
			return true
		}
	}
	return false
}

func TestShares(t *testing.T) {
	set := func(name string, hours float64) Set {
		return Set{Name: name, Timeout: time.Duration(hours * float64(time.Hour))}
	}
	all := []Set{set("a", 1), set("b", 4), set("c", 2), set("d", 2), set("e", 1)}
	for hosts, want := range map[int]string{0: "abcde", 1: "abcde", 2: "ab cde", 3: "b ac de", 9: "b c d a e"} {
		var got []string
		for _, share := range shares(all, hosts) {
			names := ""
			for _, s := range share {
				names += s.Name
			}
			got = append(got, names)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%d hosts: %q, want %q", hosts, s, want)
		}
	}
}

// A set whose tests will all skip takes no other's place.
func TestSharesOfWhatIsNotRun(t *testing.T) {
	all := []Set{
		{Name: "a", Timeout: 3 * time.Hour, Wants: "NO_SUCH_BINARY"}, {Name: "b", Timeout: 3 * time.Hour, Wants: "GIVEN", Env: []string{"GIVEN=1"}},
		{Name: "c", Timeout: 2 * time.Hour}, {Name: "d", Timeout: time.Hour},
	}
	got := shares(all, 2)
	if len(got[0]) != 2 || got[0][0].Name != "a" || got[0][1].Name != "b" || len(got[1]) != 2 {
		t.Errorf("%+v", got)
	}
}

// What hosts print at once is told apart line by line.
func TestMarked(t *testing.T) {
	var out strings.Builder
	live := &shared{to: &out}
	one, other := &marked{to: live, mark: "one: "}, &marked{to: live, mark: "other: "}
	for _, w := range []struct {
		to   *marked
		what string
	}{{one, "a\nb"}, {other, "x"}, {one, "c\n\n"}, {other, "\ny\n"}} {
		if n, err := w.to.Write([]byte(w.what)); n != len(w.what) || err != nil {
			t.Fatal(n, err)
		}
	}
	if want := "one: a\none: bc\none: \nother: x\nother: y\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestTableThatIsWrong(t *testing.T) {
	good := Set{Name: "a", Package: "vmm/qemu", Timeout: time.Minute}
	for name, change := range map[string]func(*Set){
		"the name is missing":           func(s *Set) { s.Name = "" },
		"is no package":                 func(s *Set) { s.Package = "../elsewhere" },
		"a package or a line of shell":  func(s *Set) { s.Package = "" },
		"too short":                     func(s *Set) { s.Timeout = time.Second },
		"missing closing )":             func(s *Set) { s.Run = "Test(" },
		"missing argument to repetitio": func(s *Set) { s.Skip = "Test/*" },
		"is not KEY=VALUE":              func(s *Set) { s.Env = []string{"KEY"} },
	} {
		s := good
		change(&s)
		if err := check([]Set{s}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := check([]Set{good, good}); err == nil || !strings.Contains(err.Error(), "another's") {
		t.Errorf("twice: %v", err)
	}
	if err := check([]Set{good, {Name: "sh", Shell: "true", Timeout: time.Minute}}); err != nil {
		t.Error(err)
	}
}

// What a host has is the environment's to tell: tests that want it may not skip there.
func TestEquipped(t *testing.T) {
	own := []string{"A=1"}
	all := []Set{{Name: "a", Env: own[:1:1]}, {Name: "b"}}
	for _, c := range []struct {
		o    Options
		want []string
	}{
		{Options{Place: Here}, nil},
		{Options{Place: Nested}, []string{"THROWAWAY_HOST=1"}},
		{Options{Place: Nested, Kernel: "backports"}, []string{"THROWAWAY_HOST=1", "REQUIRE_LANDLOCK=1"}},
	} {
		got := equipped(all, c.o)
		if diff := cmp.Diff([][]string{append([]string{"A=1"}, c.want...), c.want}, [][]string{got[0].Env, got[1].Env}); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.o, diff)
		}
	}
	if len(all[0].Env) != 1 || all[1].Env != nil {
		t.Errorf("the sets that were given are changed: %+v", all)
	}
}

// A kernel that there is not, or that this machine would need, is an error before anything is built.
func TestNoSuchKernel(t *testing.T) {
	if _, err := HostImage(t.Context(), "9.9", func(string) {}); err == nil || !strings.Contains(err.Error(), "backports") {
		t.Errorf("%v", err)
	}
	o := Options{Place: Here, Kernel: "backports", Out: t.TempDir(), Live: io.Discard}
	if _, err := Run(t.Context(), []Set{{Name: "a", Shell: "true", Timeout: time.Minute}}, o); err == nil || !strings.Contains(err.Error(), "--place nested") {
		t.Errorf("%v", err)
	}
}

func TestSelect(t *testing.T) {
	if diff := cmp.Diff(sets, Select(nil)); diff != "" {
		t.Errorf("all (-want +got):\n%s", diff)
	}
	some := Select([]string{"worker/jail", "jobs"})
	if err := check(some); err != nil {
		t.Error(err)
	}
	last := some[len(some)-1]
	if len(some) < 2 || some[0].Package != "worker/jail" || last.Package != "jobs" || last.Timeout != adHoc {
		t.Errorf("%+v", some)
	}
}

func TestArgs(t *testing.T) {
	s := Set{Name: "a set: of/mine", Run: "TestA|TestB", Skip: "TestC", Timeout: 2 * time.Minute}
	want := []string{"-test.v", "-test.paniconexit0", "-test.timeout=1m45s", "-test.run=TestA|TestB", "-test.skip=TestC"}
	if diff := cmp.Diff(want, s.args()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	b := Set{Name: "bench", Bench: "BenchmarkClone", Timeout: time.Minute}
	want = []string{"-test.v", "-test.paniconexit0", "-test.timeout=45s", "-test.benchmem", "-test.bench=BenchmarkClone", "-test.run=^$"}
	if diff := cmp.Diff(want, b.args()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := s.file(); got != "a-set--of-mine" {
		t.Errorf("file %q", got)
	}
}
