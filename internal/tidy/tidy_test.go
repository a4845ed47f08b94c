// Package tidy holds the repository's rules: what may import what, how large things may grow, what must be documented, what must not be
// there. TestRepository applies them to the whole tree; every rule also has a test of its own, in rules_test.go.
//
// The rules look at Go files by their syntax, so they need no build and run in a second or two. Generated files (first line of the form
// "// Code generated … DO NOT EDIT.") are left out, except that generated mocks are refused. Where syntax cannot decide, a rule
// says in its comment what it takes for what.
package tidy

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// TestRepository holds the tree to the rules and prints every breach.
func TestRepository(t *testing.T) {
	root := os.DirFS("../..")
	if _, err := os.Stat("../../go.mod"); err != nil {
		t.Fatal("not run in the repository: ", err)
	}
	problems, err := check(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
}

// A problem is one breach of one rule.
type problem struct {
	path string // slash-separated, from the repository's root
	line int    // 0 if the whole file or folder is meant
	text string // what is wrong, with the numbers where something is counted
}

// String gives the problem in the form editors jump to.
func (p problem) String() string {
	if p.line == 0 {
		return p.path + ": " + p.text
	}
	return fmt.Sprintf("%s:%d: %s", p.path, p.line, p.text)
}

// check returns every problem of the repository in fsys, in order of path and line. An error means that it could not be read or parsed.
func check(fsys fs.FS) ([]problem, error) {
	r, err := load(fsys)
	if err != nil {
		return nil, err
	}
	for _, rule := range rules() {
		rule(r)
	}
	slices.SortStableFunc(r.problems, func(a, b problem) int {
		if a.path != b.path {
			return strings.Compare(a.path, b.path)
		}
		return a.line - b.line
	})
	return r.problems, nil
}

func rules() []func(*repo) {
	return []func(*repo){
		importTable, fileLines, functions, exportedNames, interfaceMethods, testShare,
		documented, packageComments, noInit, noState, noMocks, noSleep, noSilentSkip, fuzzSeeds, words, proofs,
	}
}

// A repo is the parsed tree and the problems found so far.
type repo struct {
	fset     *token.FileSet
	packages []*pkg
	texts    []text
	seeds    map[string]bool // folders that hold files: "<package>/testdata/fuzz/<target>"
	scripts  map[string]int  // package folder → lines of test scripts in its testdata
	problems []problem
}

// A pkg is one folder of Go files.
type pkg struct {
	dir   string // "" for the root
	files []*file
}

type file struct {
	path      string
	test      bool
	generated bool
	lines     int
	syntax    *ast.File
}

// A text is any file of ours that is read by people.
type text struct {
	path string
	data []byte
}

func (r *repo) report(path string, line int, format string, args ...any) {
	r.problems = append(r.problems, problem{path, line, fmt.Sprintf(format, args...)})
}

func (r *repo) reportAt(f *file, pos token.Pos, format string, args ...any) {
	r.report(f.path, r.fset.Position(pos).Line, format, args...)
}

// name is how messages call the package.
func (p *pkg) name() string {
	if p.dir == "" {
		return "the root package"
	}
	return p.dir
}

// production returns the files that are compiled into the program; tests the others. Both without generated files.
func (p *pkg) production() []*file { return p.filter(false) }
func (p *pkg) tests() []*file      { return p.filter(true) }

func (p *pkg) filter(test bool) []*file {
	var some []*file
	for _, f := range p.files {
		if f.test == test && !f.generated {
			some = append(some, f)
		}
	}
	return some
}

// under tells whether the package lies in the folder dir or is that folder.
func (p *pkg) under(dir string) bool { return p.dir == dir || strings.HasPrefix(p.dir, dir+"/") }

// load reads the tree. Folders that .gitignore names at the root are not ours; testdata is not Go; tools is another module.
func load(fsys fs.FS) (*repo, error) {
	r := &repo{fset: token.NewFileSet(), seeds: map[string]bool{}, scripts: map[string]int{}}
	skip := map[string]bool{".git": true}
	ignored, err := fs.ReadFile(fsys, ".gitignore")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(ignored)) {
		skip[strings.Trim(line, "/\n")] = true
	}
	packages := map[string]*pkg{}
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && skip[name]:
			return fs.SkipDir
		case !d.Type().IsRegular(), skip[name]: // .git is a file where the work tree is linked
			return nil
		}
		data, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		return r.add(packages, name, data)
	})
	if err != nil {
		return nil, err
	}
	for _, p := range packages {
		r.packages = append(r.packages, p)
	}
	slices.SortFunc(r.packages, func(a, b *pkg) int { return strings.Compare(a.dir, b.dir) })
	return r, nil
}

// add takes one file in, as what its name says.
func (r *repo) add(packages map[string]*pkg, name string, data []byte) error {
	dir := path.Dir(name)
	if owner, inside, ok := strings.Cut("/"+name, "/testdata/"); ok {
		owner = strings.TrimPrefix(owner, "/")
		if strings.HasPrefix(inside, "fuzz/") {
			r.seeds[dir] = true
		}
		if ext := path.Ext(name); ext == ".txt" || ext == ".txtar" {
			r.scripts[owner] += bytes.Count(data, []byte("\n"))
		}
		return nil
	}
	if !bytes.Contains(data[:min(len(data), 8000)], []byte{0}) && path.Base(name) != "go.sum" && name != "LICENSE" {
		r.texts = append(r.texts, text{name, data})
	}
	if path.Ext(name) != ".go" || strings.HasPrefix(name, "tools/") {
		return nil
	}
	syntax, err := parser.ParseFile(r.fset, name, data, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	dir = strings.TrimPrefix(dir, ".")
	if packages[dir] == nil {
		packages[dir] = &pkg{dir: dir}
	}
	packages[dir].files = append(packages[dir].files, &file{
		path:      name,
		test:      strings.HasSuffix(name, "_test.go"),
		generated: ast.IsGenerated(syntax),
		lines:     bytes.Count(data, []byte("\n")),
		syntax:    syntax,
	})
	return nil
}
