// Package images keeps the images that machines run: recipes, the content-addressed store of what was built from them, and the
// templates that a host has made of them. Building images is images/build's.
//
// It imports jobs, vmm and guestagent/client, with which a template is warmed.
package images

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/jobs"
)

// Recipe says how an image is made.
type Recipe struct {
	Name        string `yaml:"name" json:"name"`
	Description string `yaml:"description" json:"description,omitempty"`
	Base        Base   `yaml:"base" json:"base"`
	// Packages are installed on the base.
	Packages []string `yaml:"packages" json:"packages,omitempty"`
	// Files are written into the root, Run lines then run in it by its own /bin/sh, as root, at build time.
	Files []File   `yaml:"files" json:"files,omitempty"`
	Run   []string `yaml:"run" json:"run,omitempty"`
	// Warm commands run in the booted machine before its snapshot: what they leave in the page cache every clone has.
	Warm      []Warm    `yaml:"warm" json:"warm,omitempty"`
	Resources Resources `yaml:"resources" json:"resources"`
	// AllowRoot says whether a job's steps may run as root; true where it is left out: the machine is the wall.
	AllowRoot *bool             `yaml:"allow_root" json:"allow_root,omitempty"`
	Env       map[string]string `yaml:"env" json:"env,omitempty"`
}

// Base is the distribution below.
type Base struct {
	Distribution string `yaml:"distribution" json:"distribution"` // "debian"
	Suite        string `yaml:"suite" json:"suite"`               // "bookworm", "trixie"
}

// File is a file of the image.
type File struct {
	Path    string `yaml:"path" json:"path"`
	Mode    string `yaml:"mode" json:"mode,omitempty"` // octal; "0644"
	Content string `yaml:"content" json:"content"`
}

// Warm is a command before the snapshot: Shell, or Cmd with Args. User is "sandbox" (the default) or "root".
type Warm struct {
	Cmd   string   `yaml:"cmd" json:"cmd,omitempty"`
	Args  []string `yaml:"args" json:"args,omitempty"`
	Shell string   `yaml:"shell" json:"shell,omitempty"`
	User  string   `yaml:"user" json:"user,omitempty"`
}

// Resources are a machine's size where a job names none.
type Resources struct {
	VCPUs      int `yaml:"vcpus" json:"vcpus"`
	MemoryMiB  int `yaml:"memory_mib" json:"memory_mib"`
	ScratchMiB int `yaml:"scratch_mib" json:"scratch_mib"`
}

//go:embed recipes/*.yaml
var shipped embed.FS

// Recipes are the names of the recipes that Paddock ships.
func Recipes() []string {
	files, _ := fs.Glob(shipped, "recipes/*.yaml")
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(path.Base(f), ".yaml"))
	}
	return names
}

// ShippedRecipe gives a recipe by its name.
func ShippedRecipe(name string) (Recipe, error) {
	b, err := shipped.ReadFile("recipes/" + name + ".yaml")
	if err != nil {
		return Recipe{}, fmt.Errorf("no recipe %q: shipped are %s; or give a recipe's file", name, strings.Join(Recipes(), ", "))
	}
	return ParseRecipe(b)
}

var unknownKey = regexp.MustCompile(`^line (\d+): field (.+) not found in type images\.(\w+)$`)

// recipeKeys are what may stand where.
var recipeKeys = map[string][]string{
	"Recipe":    {"name", "description", "base", "packages", "files", "run", "warm", "resources", "allow_root", "env"},
	"Base":      {"distribution", "suite"},
	"File":      {"path", "mode", "content"},
	"Warm":      {"cmd", "args", "shell", "user"},
	"Resources": {"vcpus", "memory_mib", "scratch_mib"},
}

// ParseRecipe reads a recipe from YAML, checks it, and fills in what it leaves out.
func ParseRecipe(b []byte) (Recipe, error) {
	r := Recipe{Base: Base{Distribution: "debian", Suite: "bookworm"}, Resources: Resources{VCPUs: 1, MemoryMiB: 256, ScratchMiB: 1024}}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&r); err != nil {
		return Recipe{}, decodeError(err)
	}
	if err := d.Decode(new(Recipe)); !errors.Is(err, io.EOF) {
		return Recipe{}, errors.New("recipe: a second document follows after ---; a file holds one recipe")
	}
	return r, r.check()
}

// decodeError says each of a document's faults in the recipe's own words.
func decodeError(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("recipe: empty")
	}
	faults, ok := errors.AsType[*yaml.TypeError](err)
	if !ok {
		return fmt.Errorf("recipe: %w", err)
	}
	var errs []error
	for _, f := range faults.Errors {
		if m := unknownKey.FindStringSubmatch(f); m != nil {
			f = fmt.Sprintf("line %s: unknown key %q%s", m[1], m[2], didYouMean(m[2], recipeKeys[m[3]]))
		}
		errs = append(errs, errors.New("recipe: "+f))
	}
	return errors.Join(errs...)
}

func didYouMean(word string, known []string) string {
	if near := jobs.Nearest(word, known); near != "" {
		return "; did you mean " + near + "?"
	}
	return "; known are " + strings.Join(known, ", ")
}

var (
	nameRE    = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	packageRE = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	envRE     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	modeRE    = regexp.MustCompile(`^0?[0-7]{3,4}$`)
)

// suites are those whose kernel and packages a machine has been seen to boot with.
var suites = []string{"bookworm", "trixie"}

// check gives all that is wrong at once.
func (r *Recipe) check() error {
	var f faults
	r.checkBase(&f)
	r.checkFiles(&f)
	r.checkCommands(&f)
	r.checkMachine(&f)
	return errors.Join(f...)
}

// faults collects what is wrong with a recipe.
type faults []error

func (f *faults) add(format string, args ...any) {
	*f = append(*f, fmt.Errorf("recipe: "+format, args...))
}

func (r *Recipe) checkBase(f *faults) {
	if !nameRE.MatchString(r.Name) {
		f.add("name: %q must be 1 to 63 lower-case letters, digits, '.', '_' or '-'", r.Name)
	}
	if r.Base.Distribution != "debian" {
		f.add("base.distribution: %q, only debian can be built", r.Base.Distribution)
	}
	if !slices.Contains(suites, r.Base.Suite) {
		f.add("base.suite: %q cannot be built%s", r.Base.Suite, didYouMean(r.Base.Suite, suites))
	}
	for i, p := range r.Packages {
		if !packageRE.MatchString(p) {
			f.add("packages[%d]: %q is no package's name", i, p)
		}
	}
}

func (r *Recipe) checkFiles(f *faults) {
	for i, file := range r.Files {
		p := file.Path
		if !path.IsAbs(p) || slices.Contains(strings.Split(p, "/"), "..") || path.Clean(p) != p || p == "/" || hasNUL(p) {
			f.add("files[%d].path: %q must be a clean absolute path", i, p)
		}
		if file.Mode != "" && !modeRE.MatchString(file.Mode) {
			f.add("files[%d].mode: %q must be octal, like 0644", i, file.Mode)
		}
	}
}

func (r *Recipe) checkCommands(f *faults) {
	for i, line := range r.Run {
		if hasNUL(line) {
			f.add("run[%d]: %q has a zero byte, which no command line can hold", i, line)
		}
	}
	for i, w := range r.Warm {
		if (w.Cmd == "") == (w.Shell == "") {
			f.add("warm[%d]: give cmd or shell", i)
		}
		if w.Shell != "" && len(w.Args) > 0 {
			f.add("warm[%d].args: they belong to cmd, a shell line has its own", i)
		}
		if hasNUL(append([]string{w.Cmd, w.Shell}, w.Args...)...) {
			f.add("warm[%d]: it has a zero byte, which no command line can hold", i)
		}
		if w.User != "" && w.User != "sandbox" && w.User != "root" {
			f.add("warm[%d].user: %q must be sandbox or root", i, w.User)
		}
	}
}

func (r *Recipe) checkMachine(f *faults) {
	for _, k := range slices.Sorted(maps.Keys(r.Env)) {
		if !envRE.MatchString(k) {
			f.add("env: %q is no variable's name", k)
		}
		if hasNUL(r.Env[k]) {
			f.add("env.%s: it has a zero byte, which no environment can hold", k)
		}
	}
	for _, x := range []struct {
		name           string
		v, least, most int
	}{{"vcpus", r.Resources.VCPUs, 1, 64}, {"memory_mib", r.Resources.MemoryMiB, 96, 1 << 20}, {"scratch_mib", r.Resources.ScratchMiB, 16, 1 << 20}} {
		if x.v < x.least || x.v > x.most {
			f.add("resources.%s: %d must be %d to %d", x.name, x.v, x.least, x.most)
		}
	}
}

func hasNUL(words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.ContainsRune(w, 0) })
}
