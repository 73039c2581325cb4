// Package docs_test holds the documents to what is there: their links lead somewhere, their examples do what they say.
package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/harness"
)

func TestMain(m *testing.M) {
	root, err := harness.Root()
	if err == nil {
		err = os.Chdir(root)
	}
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// documents are all Markdown files of the repository.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "bin") {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			b, err := os.ReadFile(path)
			docs[path] = string(b)
			return err
		}
		return nil
	})
	if err != nil || len(docs) < 5 {
		t.Fatal(docs, err)
	}
	return docs
}

var (
	code    = regexp.MustCompile("(?ms)^```.*?^```$|`[^`\n]*`")
	link    = regexp.MustCompile(`\]\(([^)]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noWord  = regexp.MustCompile("[^a-z0-9 _-]")
)

// anchors are a document's headings as its readers' links name them.
func anchors(doc string) (l []string) {
	for _, h := range heading.FindAllStringSubmatch(doc, -1) {
		l = append(l, strings.ReplaceAll(noWord.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return l
}

func TestLinks(t *testing.T) {
	docs := documents(t)
	for path, doc := range docs {
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(doc, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(docs[target]), anchor) {
				t.Errorf("%s links to %s: there is no such heading", path, m[1])
			}
		}
	}
}

// blocks are the code blocks of a language in a document, in order.
func blocks(t *testing.T, path, lang string) (l []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```"+lang+"\n(.*?)^```$").FindAllStringSubmatch(string(b), -1) {
		l = append(l, m[1])
	}
	if len(l) == 0 {
		t.Fatalf("%s has no block of %s", path, lang)
	}
	return l
}

// TestSpecs has every spec in the documents decoded; one that shows an error is none.
func TestSpecs(t *testing.T) {
	for _, path := range []string{"README.md", "docs/jobs.md"} {
		for _, b := range blocks(t, path, "json") {
			var m map[string]json.RawMessage
			if err := json.Unmarshal([]byte(b), &m); err != nil {
				t.Errorf("%s: %v in\n%s", path, err, b)
				continue
			}
			if m["code"] != nil {
				continue
			}
			if _, warnings, err := jobs.Decode([]byte(b), jobs.Strict); err != nil || len(warnings) > 0 {
				t.Errorf("%s: %v %q in\n%s", path, err, warnings, b)
			}
		}
	}
}

func TestRecipes(t *testing.T) {
	for _, b := range blocks(t, "docs/images.md", "yaml") {
		if _, err := images.ParseRecipe([]byte(b)); err != nil {
			t.Errorf("docs/images.md: %v", err)
		}
	}
}

// python gives an interpreter that has a package of PyPI, in a cache that other runs share.
func python(t *testing.T, pkg string) string {
	t.Helper()
	bin, err := harness.Python(t.Context(), pkg)
	if err != nil {
		missing(t, err)
	}
	return bin
}

// TestExamples runs the documents' programs against a Paddock whose machines are processes: what they show is the contract.
func TestExamples(t *testing.T) {
	p := paddock(t)
	results := blocks(t, "docs/nats.md", "text")
	for _, tt := range []struct{ name, source, ext, want string }{
		{"README.md in Python", blocks(t, "README.md", "python")[0], ".py", "line 0\nline 1\nline 2\nexited 0\n"},
		{"docs/nats.md in Python", blocks(t, "docs/nats.md", "python")[0], ".py", results[0]},
		{"docs/nats.md, objects", blocks(t, "docs/nats.md", "python")[1], ".py", results[2]},
		{"docs/nats.md in Go", blocks(t, "docs/nats.md", "go")[0], ".go", results[1]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			example(t, p, p.URL, strings.ReplaceAll(tt.source, "nats://127.0.0.1:4222", p.URL), tt.ext, tt.want)
		})
	}
}

// TestExamplesOfATenant runs them where a tenant's permissions are all that they have, with the inbox that docs/nats.md says they then need.
func TestExamplesOfATenant(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "credentials.yaml")
	if err := access.Write(file, []access.Credential{{User: "me", Password: string(hash), Identity: access.Identity{Role: access.Tenant, Name: "default"}}}); err != nil {
		t.Fatal(err)
	}
	p := paddock(t, "--nats-credentials", file)
	url := strings.Replace(p.URL, "nats://", "nats://me:secret@", 1)
	results := blocks(t, "docs/nats.md", "text")
	for _, tt := range []struct{ name, source, ext, connect, with, want string }{
		{"docs/nats.md in Python", blocks(t, "docs/nats.md", "python")[0], ".py", "nats.connect(url)", `nats.connect(url, inbox_prefix="_INBOX_default")`, results[0]},
		{"docs/nats.md, objects", blocks(t, "docs/nats.md", "python")[1], ".py", "nats.connect(url)", `nats.connect(url, inbox_prefix="_INBOX_default")`, results[2]},
		{"docs/nats.md in Go", blocks(t, "docs/nats.md", "go")[0], ".go", "nats.Connect(url)", `nats.Connect(url, nats.CustomInboxPrefix("_INBOX_default"))`, results[1]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(tt.source, tt.connect) != 1 {
				t.Fatalf("it does not say %s once", tt.connect)
			}
			example(t, p, url, strings.Replace(tt.source, tt.connect, tt.with, 1), tt.ext, tt.want)
		})
	}
}

// paddock starts one whose machines are processes.
func paddock(t *testing.T, args ...string) *harness.Paddock {
	t.Helper()
	p, err := harness.Start(t.Context(), harness.Options{Driver: "hostproc", Args: append([]string{"--images", "base,python"}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// example runs a program, which is told where NATS is, and compares what it prints.
func example(t *testing.T, p *harness.Paddock, url, source, ext, want string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "example"+ext)
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	argv := []string{"go", "run", file, url}
	if ext == ".py" {
		argv = []string{python(t, "nats-py==2.11.0"), file, url}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if d := cmp.Diff(string(out), want); err != nil || d != "" {
		t.Errorf("%v %s (-got +want):\n%s\n%s", err, d, stderr.String(), p.Log())
	}
}

// TestConfigs has every sample configuration read by the binary.
func TestConfigs(t *testing.T) {
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("configs/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		command, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".yaml"), "-")
		out, err := exec.CommandContext(t.Context(), bin, command, "--config", file, "--print-config").CombinedOutput()
		if err != nil {
			t.Errorf("paddock %s --config %s: %v\n%s", command, file, err, out)
		}
	}
}

// TestUnits has the binary take the command line of every systemd unit.
func TestUnits(t *testing.T) {
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("deploy/systemd/*.service")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if unit, _, _ := strings.Cut(string(b), "\n[Service]"); !strings.Contains(unit, "\nStartLimitIntervalSec=0\n") {
			t.Errorf("%s: systemd gives it up when what it needs comes later", file)
		}
		_, line, ok := strings.Cut(string(b), "\nExecStart=/usr/local/bin/paddock ")
		if !ok {
			t.Errorf("%s does not start /usr/local/bin/paddock", file)
			continue
		}
		line, _, _ = strings.Cut(line, "\n")
		args := strings.Fields(line)
		config := "configs/" + args[0] + ".yaml"
		for i, a := range args {
			if a == "/etc/paddock/paddock.yaml" {
				args[i] = config
			}
		}
		if out, err := exec.CommandContext(t.Context(), bin, append(args, "--print-config")...).CombinedOutput(); err != nil {
			t.Errorf("%s: paddock %s: %v\n%s", file, line, err, out)
		}
	}
}

// TestBenchmarks holds the tables of docs/benchmarks.md against the raw samples beside it.
func TestBenchmarks(t *testing.T) {
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("docs/benchmarks/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	out, err := exec.CommandContext(t.Context(), bin, append([]string{"bench", "show"}, files...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(out), blocks(t, "docs/benchmarks.md", "text")[0]); d != "" {
		t.Errorf("docs/benchmarks.md differs from its samples (-samples +tables):\n%s", d)
	}
}
