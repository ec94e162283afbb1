package gofrstest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Everything that the original exports is here, with the same types.
func TestAPI(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		theirs, own := exported(t, goos, original), exported(t, goos, ours)
		if len(theirs) < 18 {
			t.Fatalf("%s: the original exports only %q", goos, theirs)
		}
		for _, name := range theirs {
			if !slices.Contains(own, name) {
				t.Errorf("%s: missing: %s", goos, name)
			}
		}
		t.Logf("%s: %d exported; ours alone: %q", goos, len(theirs), slices.DeleteFunc(own, func(name string) bool { return slices.Contains(theirs, name) }))
	}
}

// exported returns the exported declarations of a package: types with no fields, since
// nothing of those is exported, and functions without the names of their parameters.
func exported(t *testing.T, goos, path string) (names []string) {
	t.Helper()
	cmd := command(t, ".", "go", "list", "-f", "{{.Dir}}{{range .GoFiles}} {{.}}{{end}}", path)
	cmd.Env = append(cmd.Env, "GOOS="+goos)
	out, err := cmd.Output()
	must(t, err)
	dir, files, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	set := token.NewFileSet()
	text := func(node any) string {
		var b strings.Builder
		must(t, printer.Fprint(&b, set, node))
		return strings.ReplaceAll(b.String(), "windows.Errno", "syscall.Errno") // an alias
	}
	for _, file := range strings.Fields(files) {
		f, err := parser.ParseFile(set, filepath.Join(dir, file), nil, 0)
		must(t, err)
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if !d.Name.IsExported() {
					continue
				}
				receiver := ""
				if d.Recv != nil {
					receiver = text(d.Recv.List[0].Type) + "."
				}
				for _, list := range []*ast.FieldList{d.Type.Params, d.Type.Results} {
					if list == nil {
						continue
					}
					for _, field := range list.List {
						field.Names = nil
					}
				}
				names = append(names, receiver+d.Name.Name+strings.TrimPrefix(text(d.Type), "func"))
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if st, ok := s.Type.(*ast.StructType); ok {
							st.Fields = &ast.FieldList{}
						}
						if fn, ok := s.Type.(*ast.FuncType); ok {
							fn.Params.List[0].Names = nil
						}
						if s.Name.IsExported() {
							names = append(names, fmt.Sprint("type ", s.Name, " ", text(s.Type)))
						}
					case *ast.ValueSpec:
						for _, name := range s.Names {
							if name.IsExported() {
								names = append(names, fmt.Sprint(d.Tok, " ", name, " ", text(s.Type)))
							}
						}
					}
				}
			}
		}
	}
	return names
}
