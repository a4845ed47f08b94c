// Command gen writes the generated files of package lambdaapi: shapes, rules and routes, from the model of the Lambda service that AWS
// publishes for its SDKs, with an overlay of ours for what is newer than that model.
//
//	gen [-model FILE] [-overlay FILE] [-dir DIR]
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

// Where the model is published, under Apache-2.0. The module is not one we build with: the go command only fetches it.
const (
	modelModule = "github.com/aws/aws-sdk-go@v1.55.8"
	modelFile   = "models/apis/lambda/2015-03-31/api-2.json"
)

func main() {
	file := flag.String("model", "", "the model; without it, the one in "+modelModule)
	overlay := flag.String("overlay", "gen/overlay.json", "what is laid over the model")
	dir := flag.String("dir", ".", "where the files go")
	flag.Parse()
	if err := run(*file, *overlay, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(file, overlay, dir string) error {
	if file == "" {
		var err error
		if file, err = find(modelModule, modelFile); err != nil {
			return err
		}
	}
	files, err := generate(file, overlay)
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate returns the content of each generated file.
func generate(file, overlay string) (map[string][]byte, error) {
	m, err := load(file, overlay)
	if err != nil {
		return nil, err
	}
	if err := m.prune(answered); err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for name, write := range map[string]func(*model) (string, error){
		"shapes_gen.go": shapes, "rules_gen.go": rules, "routes_gen.go": routes, "errors_gen.go": kinds,
		"operations_gen_test.go": operations,
	} {
		text, err := write(m)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if files[name], err = source(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return files, nil
}
