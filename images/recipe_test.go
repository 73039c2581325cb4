package images_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/images"
)

func TestParseRecipe(t *testing.T) {
	got, err := images.ParseRecipe([]byte(`
name: numerics
packages: [bash, libstdc++6]
files:
  - {path: /etc/motd, mode: 0600, content: hello}
run: [ldconfig]
warm:
  - {cmd: python3, args: [-V], user: root}
  - {shell: "id; date"}
resources: {memory_mib: 512}
allow_root: false
env: {LANG: C.UTF-8}
`))
	if err != nil {
		t.Fatal(err)
	}
	no := false
	want := images.Recipe{
		Name: "numerics", Base: images.Base{Distribution: "debian", Suite: "bookworm"}, Packages: []string{"bash", "libstdc++6"},
		Files: []images.File{{Path: "/etc/motd", Mode: "0600", Content: "hello"}}, Run: []string{"ldconfig"},
		Warm:      []images.Warm{{Cmd: "python3", Args: []string{"-V"}, User: "root"}, {Shell: "id; date"}},
		Resources: images.Resources{VCPUs: 1, MemoryMiB: 512, ScratchMiB: 1024}, AllowRoot: &no, Env: map[string]string{"LANG": "C.UTF-8"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("recipe (-want +got):\n%s", diff)
	}
}

func TestParseRecipeTellsEveryFault(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []string // parts of the lines that are said, in order
	}{
		{"nothing", "", []string{"empty"}},
		{"only a comment", "# later\n", []string{"empty"}},
		{"no YAML", "name: [x", []string{"line 1: did not find expected"}},
		{"a list", "- name: x", []string{"line 1: cannot unmarshal !!seq"}},
		{"two recipes", "name: x\n---\nname: y\n", []string{"a second document"}},
		{"broken rest", "name: x\n---\n[", []string{"a second document"}},
		{"a key twice", "name: x\nname: y\n", []string{`line 2: mapping key "name" already defined at line 1`}},
		{"unknown keys", "nane: x\nbase:\n  suit: trixie\nfiles:\n  - {path: /a, made: 1}\nwhat ever: 1\n", []string{
			`line 1: unknown key "nane"; did you mean name?`, `line 3: unknown key "suit"; did you mean suite?`, `line 5: unknown key "made"; did you mean mode?`,
			`line 6: unknown key "what ever"; known are name, description`,
		}},
		{"wrong types", "name: x\nresources:\n  vcpus: many\npackages: {a: b}\n", []string{"line 3: cannot unmarshal !!str `many` into int", "line 4: cannot unmarshal !!map into []string"}},
		{"wrong values", `
name: ../x
base: {distribution: fedora, suite: bookwrm}
packages: [bash, "a b", "-x", x, "--opt=1"]
files:
  - {path: etc/motd}
  - {path: /etc/../x}
  - {path: /etc//x}
  - {path: /, mode: rwx}
  - {path: /x, mode: "0888"}
  - {path: "/x\0y"}
run: ["echo\0"]
warm:
  - {}
  - {cmd: a, shell: b}
  - {shell: b, args: [c], user: nobody}
  - {cmd: a, args: ["\0"]}
resources: {vcpus: 0, memory_mib: 64, scratch_mib: 2000000}
env: {"A=B": c, D: "\0"}
`, []string{
			`name: "../x" must be`, `base.distribution: "fedora"`, `base.suite: "bookwrm" cannot be built; did you mean bookworm?`,
			`packages[1]: "a b"`, `packages[2]: "-x"`, `packages[3]: "x"`, `packages[4]: "--opt=1"`,
			`files[0].path: "etc/motd"`, `files[1].path: "/etc/../x"`, `files[2].path: "/etc//x"`, `files[3].path: "/"`, `files[3].mode: "rwx"`,
			`files[4].mode: "0888"`, `files[5].path: "/x\x00y"`, `run[0]: "echo\x00"`,
			"warm[0]: give cmd or shell", "warm[1]: give cmd or shell", "warm[2].args: they belong to cmd", `warm[2].user: "nobody"`, "warm[3]: it has a zero byte",
			`env: "A=B" is no variable's name`, "env.D: it has a zero byte",
			"resources.vcpus: 0 must be 1 to 64", "resources.memory_mib: 64 must be", "resources.scratch_mib: 2000000 must be",
		}},
		{"no suite like it", "name: x\nbase: {suite: potato}\n", []string{`base.suite: "potato" cannot be built; known are bookworm, trixie`}},
		{"a name too long", "name: " + strings.Repeat("x", 64), []string{"name: "}},
		{"a name with a line's end", "name: \"x\\n\"", []string{"name: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := images.ParseRecipe([]byte(c.yaml))
			if err == nil {
				t.Fatal("parsed")
			}
			lines := strings.Split(err.Error(), "\n")
			for i, want := range c.want {
				if i >= len(lines) || !strings.HasPrefix(lines[i], "recipe: ") || !strings.Contains(lines[i], want) {
					t.Fatalf("fault %d is not %q in:\n%v", i, want, err)
				}
			}
			if len(lines) > len(c.want) {
				t.Errorf("%d faults, want %d:\n%v", len(lines), len(c.want), err)
			}
		})
	}
}

func TestShippedRecipes(t *testing.T) {
	if diff := cmp.Diff([]string{"base", "python"}, images.Recipes()); diff != "" {
		t.Error(diff)
	}
	for _, name := range images.Recipes() {
		r, err := images.ShippedRecipe(name)
		if err != nil || r.Name != name {
			t.Errorf("%s: %q, %v", name, r.Name, err)
		}
	}
	for _, name := range []string{"", "pyton", "../recipe", "base.yaml"} {
		if _, err := images.ShippedRecipe(name); err == nil || !strings.Contains(err.Error(), "base, python") {
			t.Errorf("%q: %v, want what is shipped", name, err)
		}
	}
}

func FuzzParseRecipe(f *testing.F) {
	f.Add([]byte("name: x\nfiles: [{path: /a}]\n"))
	f.Add([]byte("name: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := images.ParseRecipe(b)
		if err == nil && (r.Name == "" || r.Resources.VCPUs < 1 || strings.ContainsAny(r.Name, "/\x00")) {
			t.Errorf("accepted: %+v", r)
		}
	})
}
