package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Python gives an interpreter that has a package of PyPI, like "standardwebhooks==1.1.0", in a cache that other runs share.
func Python(ctx context.Context, pkg string) (string, error) {
	bin := filepath.Join("bin", "python")
	dir, err := installed(ctx, "python", pkg, bin, func(dir string) [][]string {
		return [][]string{{"python3", "-m", "venv", "--clear", dir}, {filepath.Join(dir, bin), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", pkg}}
	})
	return filepath.Join(dir, bin), err
}

// Node gives a directory from which programs of node find a package of npm, like "standardwebhooks@1.1.1", in a cache that other runs share.
func Node(ctx context.Context, pkg string) (string, error) {
	if _, err := exec.LookPath("node"); err != nil {
		return "", fmt.Errorf("%w: the JavaScript examples need it", err)
	}
	return installed(ctx, "node", pkg, "node_modules", func(dir string) [][]string {
		return [][]string{{"npm", "install", "--prefix", dir, "--no-audit", "--no-fund", "--silent", pkg}}
	})
}

// installed gives the cache's directory of a package; the commands make it where its mark is not there, which is written last. Several
// processes may ask at once.
func installed(ctx context.Context, language, pkg, part string, commands func(dir string) [][]string) (_ string, err error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, language+"-"+strings.NewReplacer("=", "-", "@", "-", "/", "-").Replace(pkg))
	mark := filepath.Join(dir, "whole")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	_, marked := os.Stat(mark)
	_, there := os.Stat(filepath.Join(dir, part))
	if marked == nil && there == nil {
		return dir, nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", err
	}
	for _, argv := range commands(dir) {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
		}
	}
	return dir, os.WriteFile(mark, []byte(pkg+"\n"), 0o644)
}
