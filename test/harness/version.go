package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNoHistory says that this checkout does not have the commit that is asked for.
var ErrNoHistory = errors.New("no such commit in this checkout")

// Version gives the binary of an earlier version, with its agent beside it, built from the checkout's history once and kept in the cache.
func Version(ctx context.Context, commit string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "versions", commit)
	if bin := filepath.Join(dir, "paddock"); exists(bin) {
		return bin, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(filepath.Dir(dir), commit+".")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(made)
	var tree, said bytes.Buffer
	archive := exec.CommandContext(ctx, "git", "-C", root, "archive", commit)
	archive.Stdout, archive.Stderr = &tree, &said
	if err := archive.Run(); err != nil {
		return "", fmt.Errorf("%w: %s: %w: %s", ErrNoHistory, commit, err, said.Bytes())
	}
	src := filepath.Join(made, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		return "", err
	}
	for _, c := range [][]string{
		{"tar", "-x", "-C", src},
		{"go", "-C", src, "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", made, "./cmd/paddock", "./cmd/paddock-agent"},
	} {
		cmd := exec.CommandContext(ctx, c[0], c[1:]...)
		cmd.Stdin = &tree
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %v: %w\n%s", commit, c, err, out)
		}
	}
	if err := os.RemoveAll(src); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "paddock")
	if err := os.Rename(made, dir); err != nil && !exists(bin) { // another was first
		return "", err
	}
	return bin, nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
