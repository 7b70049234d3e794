// Writes the small vulnerability database of the scanner's tests: a real Trivy database (a bolt file in
// schema version 2) with planted findings in packages that Debian 12 images have, and one in a Python
// package. The ids are made up; nothing here says anything about the real packages.
//
//	apt-get install golang-go golang-github-boltdb-bolt-dev
//	GO111MODULE=off GOPATH=/usr/share/gocode go run generate.go db
package main

import (
	"log"
	"os"
	"path/filepath"

	"github.com/boltdb/bolt"
)

type planted struct{ source, name, id, advisory, detail string }

var all = []planted{
	{"debian 12", "zlib", "CVE-2099-0001", `{"FixedVersion":"1:99.0"}`,
		`{"Title":"planted: fixable and critical","Severity":"CRITICAL"}`},
	{"debian 12", "zlib", "CVE-2099-0002", `{"Status":2}`,
		`{"Title":"planted: high without a fix","Severity":"HIGH"}`},
	{"debian 12", "zlib", "CVE-2099-0003", `{"FixedVersion":"1:99.0"}`,
		`{"Title":"planted: fixable and low","Severity":"LOW"}`},
	{"pip::planted", "planted-package", "CVE-2099-0004",
		`{"PatchedVersions":["2.0"],"VulnerableVersions":["<2.0"]}`,
		`{"Title":"planted: fixable and high in a Python package","Severity":"HIGH"}`},
}

const metadata = `{"Version":2,"NextUpdate":"2020-01-02T00:00:00Z","UpdatedAt":"2020-01-01T00:00:00Z","DownloadedAt":"2020-01-01T00:00:00Z"}
`

func bucket(parent interface {
	CreateBucketIfNotExists([]byte) (*bolt.Bucket, error)
}, name string) *bolt.Bucket {
	made, err := parent.CreateBucketIfNotExists([]byte(name))
	if err != nil {
		log.Fatal(err)
	}
	return made
}

func put(into *bolt.Bucket, key, value string) {
	if err := into.Put([]byte(key), []byte(value)); err != nil {
		log.Fatal(err)
	}
}

func main() {
	folder := os.Args[1]
	if err := os.MkdirAll(folder, 0o755); err != nil {
		log.Fatal(err)
	}
	path := filepath.Join(folder, "trivy.db")
	os.Remove(path)
	database, err := bolt.Open(path, 0o644, nil)
	if err != nil {
		log.Fatal(err)
	}
	err = database.Update(func(tx *bolt.Tx) error {
		for _, one := range all {
			put(bucket(bucket(tx, one.source), one.name), one.id, one.advisory)
			put(bucket(tx, "vulnerability"), one.id, one.detail)
		}
		for _, source := range []string{"debian 12", "pip::planted"} {
			put(bucket(tx, "data-source"), source, `{"ID":"planted","Name":"planted","URL":"https://example.org"}`)
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := database.Close(); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "metadata.json"), []byte(metadata), 0o644); err != nil {
		log.Fatal(err)
	}
}
