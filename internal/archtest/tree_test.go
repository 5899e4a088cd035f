package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A source is one Go file of the module, parsed whatever its build tags.
type source struct {
	path string // below the module's root, with slashes
	dir  string // "" for the root package
	test bool
	text string
	file *ast.File
	fset *token.FileSet
}

// lines counts the lines of the file.
func (s *source) lines() int {
	n := strings.Count(s.text, "\n")
	if s.text != "" && !strings.HasSuffix(s.text, "\n") {
		n++
	}
	return n
}

// at says where a node stands, as path:line.
func (s *source) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(p).Line)
}

// imports lists the imported paths with their positions.
func (s *source) imports() map[string]token.Pos {
	m := make(map[string]token.Pos)
	for _, spec := range s.file.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			m[p] = spec.Pos()
		}
	}
	return m
}

// load parses every Go file below the root, in the order of their paths.
func load(root fs.FS) ([]*source, error) {
	var out []*source
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (ignoredDir(d.Name()) || otherModule(root, p)):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, ".go"):
			return nil
		}
		s, err := parse(root, p)
		if err != nil {
			return err
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// ignoredDir tells the directories that the go command ignores as well, and the
// two that hold what was built or formatted.
func ignoredDir(name string) bool {
	return name[0] == '.' || name[0] == '_' || name == "testdata" || name == "bin" || name == "data"
}

// otherModule tells a module of its own inside ours: what it imports is its
// business, and none of it gets into our program.
func otherModule(root fs.FS, dir string) bool {
	_, err := fs.Stat(root, dir+"/go.mod")
	return err == nil
}

func parse(root fs.FS, p string) (*source, error) {
	text, err := fs.ReadFile(root, p)
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	dir := path.Dir(p)
	if dir == "." {
		dir = ""
	}
	return &source{
		path: p, dir: dir, test: strings.HasSuffix(p, "_test.go"),
		text: string(text), file: f, fset: fset,
	}, nil
}

// moduleRoot finds the directory of go.mod above the test's own.
func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
	}
}

// loadModule parses the module that this test belongs to.
func loadModule(t *testing.T) []*source {
	t.Helper()
	files, err := load(os.DirFS(moduleRoot(t)))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 5 {
		t.Fatalf("found %d Go files only: the walk has gone blind", len(files))
	}
	return files
}

// refuse fails the test with every complaint.
func refuse(t *testing.T, complaints []string) {
	t.Helper()
	for _, c := range complaints {
		t.Error(c)
	}
}
