package tidy

import (
	"bytes"
	"regexp"
)

// words refuses what ties the tree to one machine or one provider, in every text file outside testdata: paths of somebody's home or
// workplace, and hosts of public registries. Paths below /root and /home that an image may hold are meant for tests, which may name them.
func words(r *repo) {
	place := regexp.MustCompile(`(^|[^\w.*<>{}$)-])(/(work|Users|workspace)/\w|/(root|home)/[\w.]+)`)
	host := regexp.MustCompile(`\b(docker|quay|gcr|ghcr|k8s|mcr\.microsoft|public\.ecr)\.(io|com|aws)\b|` +
		`\b(proxy|sum)\.golang\.org\b|\bregistry\.npmjs\.org\b|\bpypi\.org\b|\b(deb|security)\.debian\.org\b`)
	for _, t := range r.texts {
		number := 0
		for line := range bytes.Lines(t.data) {
			number++
			for _, m := range host.FindAll(line, -1) {
				r.report(t.path, number, "names the host %s: which registry or mirror is its user's choice", m)
			}
			for _, m := range place.FindAllSubmatch(line, -1) {
				if !inImage(t.path, m[2]) {
					r.report(t.path, number, "names the path %s of some machine", m[2])
				}
			}
		}
	}
}

// inImage tells whether a path may stand for one inside an image: tests build trees that have homes.
func inImage(name string, found []byte) bool {
	return regexp.MustCompile(`_test\.go$`).MatchString(name) && regexp.MustCompile(`^/(root|home)/`).Match(found)
}
