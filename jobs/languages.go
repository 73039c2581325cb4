package jobs

import (
	"maps"
	"path"
	"slices"
)

// language says how a source of a language is run: in which image, from which file, by which command.
type language struct {
	image, file string
	argv        []string
	extensions  []string
}

var languages = map[string]language{
	"python": {"python", "main.py", []string{"python3", "main.py"}, []string{".py"}},
	"bash":   {"base", "main.sh", []string{"bash", "main.sh"}, []string{".bash"}},
	"sh":     {"base", "main.sh", []string{"sh", "main.sh"}, []string{".sh"}},
}

// Languages are the names that Spec.Language knows, sorted.
func Languages() []string { return slices.Sorted(maps.Keys(languages)) }

// LanguageOf gives the language of a file by its extension; false for none.
func LanguageOf(file string) (string, bool) {
	for _, name := range Languages() {
		if ext := path.Ext(file); ext != "" && slices.Contains(languages[name].extensions, ext) {
			return name, true
		}
	}
	return "", false
}

// ImageName is the image that the job runs in: its own, or its language's.
func (s *Spec) ImageName() string {
	if s.Image != "" || s.Language == "" {
		return s.Image
	}
	return languages[s.Language].image
}

// Expand gives a valid spec without the shorthand: Source is a file, its run a step.
func (s *Spec) Expand() Spec {
	x := *s
	if s.Language == "" {
		return x
	}
	l := languages[s.Language]
	x.Image = s.ImageName()
	x.Files = append(slices.Clone(s.Files), File{Path: l.file, Text: s.Source})
	x.Steps = []Step{{Cmd: l.argv[0], Args: append(slices.Clone(l.argv[1:]), s.Args...), Stdin: s.Stdin}}
	x.Language, x.Source, x.Args, x.Stdin = "", "", nil, ""
	return x
}
