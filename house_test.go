// Package damselfly_test holds the house in order: it reads every Go file of the
// module, and fails with the rule and its reason where one is broken. It judges
// what stands in the files, whatever the build constraints say.
package damselfly_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path that our imports start with.
const module = "github.com/damselfly-p2p/damselfly"

// source is one Go file.
type source struct {
	name      string // path below the root, with slashes
	pkg       string // its folder; "." for the root
	test      bool
	generated bool
	lines     int
	file      *ast.File
	positions *token.FileSet
}

// breach is one place where a rule is broken.
type breach struct {
	where string // file:line
	what  string
}

// rule is a rule of the house. check returns the breaches in the whole tree.
type rule struct {
	name, text, reason string
	check              func(tree []source) []breach
}

func TestHouse(t *testing.T) {
	tree := readTree(t)
	if len(tree) == 0 {
		t.Fatal("no Go file was found")
	}
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			for _, b := range r.check(tree) {
				t.Errorf("%s: %s\n\trule: %s\n\treason: %s", b.where, b.what, r.text, r.reason)
			}
		})
	}
}

// readTree parses the files of this module; nested modules are others' houses.
func readTree(t *testing.T) []source {
	t.Helper()
	var tree []source
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			hidden := strings.HasPrefix(entry.Name(), ".") || strings.HasPrefix(entry.Name(), "_")
			_, nested := os.Stat(filepath.Join(name, "go.mod"))
			if name != "." && (hidden || nested == nil || entry.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		tree = append(tree, parse(t, filepath.ToSlash(name), string(text)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func parse(t *testing.T, name, text string) source {
	t.Helper()
	positions := token.NewFileSet()
	file, err := parser.ParseFile(positions, name, text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return source{
		name: name, pkg: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(file),
		lines: strings.Count(text, "\n"), file: file, positions: positions,
	}
}

func (s source) at(n ast.Node) string {
	return s.name + ":" + strconv.Itoa(s.positions.Position(n.Pos()).Line)
}

// imported is the path of an import; one of ours without the module.
func imported(spec *ast.ImportSpec) (name string, ours bool) {
	name, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return "", false
	}
	if name == module {
		return ".", true
	}
	return strings.CutPrefix(name, module+"/")
}

// within tells whether a package is that one or below it.
func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

func withinAny(pkg string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return within(pkg, f) })
}

// eachImport gathers what judge says of every import; "" is no breach.
func eachImport(tree []source, judge func(s source, name string, ours bool) string) []breach {
	var out []breach
	for _, s := range tree {
		for _, spec := range s.file.Imports {
			name, ours := imported(spec)
			if what := judge(s, name, ours); what != "" {
				out = append(out, breach{s.at(spec), what})
			}
		}
	}
	return out
}

// eachNode gathers what judge says of every node of the files that want admits.
func eachNode(tree []source, want func(source) bool, judge func(s source, n ast.Node) string) []breach {
	var out []breach
	for _, s := range tree {
		if !want(s) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if n == nil {
				return false
			}
			if what := judge(s, n); what != "" {
				out = append(out, breach{s.at(n), what})
			}
			return true
		})
	}
	return out
}

// selected is the name that n takes from the package with that import path, or
// "". A variable that hides the package's name is not it.
func (s source) selected(n ast.Node, importPath string) string {
	selector, ok := n.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := selector.X.(*ast.Ident)
	if !ok || x.Obj != nil {
		return ""
	}
	for _, spec := range s.file.Imports {
		name, _ := imported(spec)
		if name != importPath {
			continue
		}
		local := path.Base(name)
		if strings.HasPrefix(local, "v") && strings.Trim(local[1:], "0123456789") == "" {
			local = path.Base(path.Dir(name))
		}
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if local == x.Name {
			return selector.Sel.Name
		}
	}
	return ""
}
