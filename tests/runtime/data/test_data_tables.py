"""Tables as people have them: each form gives the rows of the plain one, or is refused with its true reason."""

import unicodedata

import numpy as np
import pytest

from suture.runtime.data.image_folder import open_image_folder
from suture.runtime.data.kaggle_dr import open_kaggle_dr
from suture.runtime.data.registry import DataConfig, open_source
from suture.runtime.data.tables import LINE, parse_columns, read_columns
from suture.runtime.errors import ConfigError, DataError

NAMES = [f"{number:03d}_left" for number in range(6)]
LEVELS = [0, 1, 2, 3, 4, 0]
BODY = "".join(f"{name},{level}\n" for name, level in zip(NAMES, LEVELS, strict=True))
PLAIN = "image,level\n" + BODY


@pytest.fixture
def folder(tmp_path, png):
    for shade, name in enumerate(NAMES):
        png(tmp_path / "img" / f"{name}.png", np.full((9, 9), 40 + shade, dtype=np.uint8))
    return tmp_path


def opened(folder, text, *, encoding="utf-8", name="trainLabels.csv", columns=None):
    (folder / name).write_bytes(text.encode(encoding))
    return open_source(f"kaggle-dr:{folder}", grades="all", need=0, seed=0, columns=columns)


FORMS = {
    "plain": (PLAIN, "utf-8"),
    "mark": (PLAIN, "utf-8-sig"),
    "semicolon": (PLAIN.replace(",", ";"), "utf-8"),
    "semicolon and decimal comma": (PLAIN.replace(",", ";").replace("\n", ",0\n").replace("level,0", "level"), "utf-8"),
    "tab": (PLAIN.replace(",", "\t"), "utf-8"),
    "bar": (PLAIN.replace(",", "|"), "utf-8"),
    "UTF-16": (PLAIN.replace(",", "\t"), "utf-16"),
    "UTF-16 without mark": (PLAIN.replace(",", "\t"), "utf-16-le"),
    "UTF-16 of the other order": (PLAIN, "utf-16-be"),
    "UTF-32": (PLAIN, "utf-32"),
    "Excel's own first line": ("sep=;\r\n" + PLAIN.replace(",", ";"), "utf-8-sig"),
    "old Mac's line ends": (PLAIN.replace("\n", "\r"), "utf-8"),
    "blank rows before, within, behind": ("\n,\n" + PLAIN.replace("002", "\n , \n002") + ",,\n\n", "utf-8"),
    "index without names": (",Unnamed: 0,image,level\n" + "".join(f"{i},{i},{r}\n" for i, r in enumerate(BODY.split())) + "6,6,,\n", "utf-8"),
    "quoted names with the delimiter in another column": (
        'note;image;level\n"a;b, c";' + BODY.replace(",", ";").replace("\n", '\n"a;b";', 5), "utf-8"),
    "commas in a semicolon table": ("remarks, all;image;level\n" + "".join(f"a, b, c;{r.replace(',', ';')}\n" for r in BODY.split()), "utf-8"),
    "APTOS": (PLAIN.replace("image,level", "id_code,diagnosis"), "utf-8"),
    "IDRiD": ("Image name,Retinopathy grade,Risk of macular edema ,,,\n" + BODY.replace("\n", ",0,,,\n"), "utf-8"),
    "Messidor": ("Image name;Ophthalmologic department;Retinopathy grade;Risk of macular edema \n"
                 + "".join(f"{n}.png;Service Ophtalmologie Lariboisière;{k};1\n" for n, k in zip(NAMES, LEVELS, strict=True)), "cp1252"),
    "Messidor-2": ("image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n" + BODY.replace("\n", ",0,1\n"), "utf-8"),
    "capitals": ("IMAGE , Level\n" + BODY, "utf-8"),
    "Windows paths": ("image,level\n" + "".join(f"D:\\study\\img\\{r.replace(',', '.PNG,')}\n" for r in BODY.split()), "utf-8"),
    "another ending": (PLAIN.replace("_left,", "_left.jpeg,"), "utf-8"),
    "said twice": (PLAIN + "000_left.png,0\n", "utf-8"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_what_the_plain_one_says(folder, form):
    """Oracle: names and levels as they were written."""
    source = opened(folder, *FORMS[form][:1], encoding=FORMS[form][1])
    assert [(one.key, one.label) for one in source.examples] == list(zip(NAMES, LEVELS, strict=True))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image,level\n1,1\n2,1\n001_left,0\n", r"names '1' and '001_left\.png' is there: a spreadsheet has cut zeros"),
        (PLAIN.replace("002_left,2", "002_left,"), r"line 4: level must be a whole number from 0, got ''"),
        (PLAIN.replace("002_left,2", "002_left,No DR"), r"line 4: level must .* got 'No DR'"),
        (PLAIN + "000_left,1\n", r"lists '000_left' more than once, in line 2 with level '0' and in line 8 with '1'"),
        (PLAIN.replace("002_left", "smith, j"), r"line 4 has 3 cells and the heading 2; put a name with ',' in it"),
        (PLAIN.replace("002_left", ""), "line 4 names no image"),
        (PLAIN.replace("002_left", '"002_left'), r"cannot read table .*unexpected end of data"),
        ("image,level,level\n" + BODY, "has 2 columns 'level'; remove one"),
        ("image:level\n" + BODY.replace(",", ":"), "has no column 'image'; its columns are: image:level"),
        ("picture,level\n" + BODY, "or say which it is: --columns image="),
    ],
)  # fmt: skip
def test_what_cannot_be_read_right_is_refused_with_its_reason(folder, text, reason):
    with pytest.raises(DataError, match=reason):
        opened(folder, text)


@pytest.mark.parametrize("start", [b"PK\x03\x04rest", b"\xd0\xcf\x11\xe0rest"])
def test_a_workbook_called_csv_is_told_by_its_content(folder, start):
    (folder / "trainLabels.csv").write_bytes(start)
    with pytest.raises(
        DataError, match=r"it is a spreadsheet's own file, whatever its ending; save it as a UTF-8"
    ):
        open_kaggle_dr(folder, grades="all")


def test_a_workbook_in_place_of_a_table_is_named(folder):
    (folder / "labels.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"has its table as 'labels\.xlsx', which is not read; save it"):
        open_kaggle_dr(folder, grades="all")


def test_ungradable_rows_are_skipped_and_counted(folder):
    heading = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
    source = opened(folder, heading + "000_left.png,2,0,1\n001_left.png,,,0\n", name="messidor_data.csv")
    assert [one.label for one in source.examples] == [2]
    assert source.notes[0] == "skipped 1 of 2 rows that the table calls not gradable"


@pytest.mark.parametrize("other", ["._labels.csv", ".~lock.labels.csv", "notes.csv", "index.csv"])
def test_a_second_table_is_none_where_it_is_hidden_or_has_other_columns(folder, other):
    (folder / other).write_bytes(b"image,patient\n000_left,anna\n" if other == "index.csv" else b"a,b\n1,2\n")
    assert len(opened(folder, PLAIN, name="labels.csv").examples) == 6


def test_two_tables_that_may_be_meant_are_refused(folder):
    (folder / "mine.csv").write_text(PLAIN)
    with pytest.raises(DataError, match=r"found 2: 'labels\.csv', 'mine\.csv'; move the others away"):
        opened(folder, PLAIN, name="labels.csv")


@pytest.mark.parametrize("on_disk", ["NFC", "NFD", "latin-1"])
@pytest.mark.parametrize("in_table", ["utf-8", "NFD", "cp1252"])
def test_accents_meet_however_each_side_writes_them(tmp_path, png, on_disk, in_table):
    """Oracle: four pictures, four rows; names as Linux, macOS and old Windows archives write them."""
    names = ["josé", "müller", "a", "b"]
    for shade, name in enumerate(names):
        file = png(tmp_path / "img" / "draft.png", np.full((4, 4), 9 + shade, dtype=np.uint8))
        raw = (
            name.encode("latin-1") if on_disk == "latin-1" else unicodedata.normalize(on_disk, name).encode()
        )
        file.rename(bytes(file.parent).decode() + "/" + (raw + b".png").decode(errors="surrogateescape"))
    text = "image,level\n" + "".join(f"{name},{k}\n" for k, name in enumerate(names))
    text = unicodedata.normalize("NFD", text) if in_table == "NFD" else text
    source = opened(tmp_path, text, encoding="utf-8" if in_table == "NFD" else in_table)
    assert [one.label for one in source.examples] == [0, 1, 2, 3]


def test_columns_say_what_a_table_calls_its_own(folder):
    """Oracle: the columns that are named, not those that bear our names."""
    text = "image,level,scan,dr score,who\n" + "".join(
        f"x,9,{name},{level},p{k // 2}\n" for k, (name, level) in enumerate(zip(NAMES, LEVELS, strict=True))
    )
    source = opened(folder, text, columns="image=scan,label=DR Score,patient=who")
    assert [one.label for one in source.examples] == LEVELS
    assert [one.patient for one in source.examples] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    with pytest.raises(
        DataError, match=r"has no column 'nobody'; its columns are: image, level, .*name one of these"
    ):
        opened(folder, text, columns="image=scan,label=dr score,patient=nobody")


def test_columns_find_the_one_table_that_has_them(folder):
    (folder / "other.csv").write_text("a,b\n")
    source = opened(
        folder, PLAIN.replace("image,level", "a,grade"), name="mine.csv", columns="image=a,label=grade"
    )
    assert [one.label for one in source.examples] == LEVELS


@pytest.mark.parametrize("text", ["image", "image=", "photo=a", "image=a,image=b", ""])
def test_columns_that_say_nothing_are_refused(text):
    with pytest.raises(ConfigError, match="--columns"):
        DataConfig(spec="kaggle-dr:x", columns=text)


def test_columns_may_stand_in_quotes():
    assert parse_columns('"image=name, full", label=grade') == {"image": "name, full", "level": "grade"}


def test_columns_are_refused_where_there_is_no_table():
    with pytest.raises(
        ConfigError, match="--columns is for data that have any to name: kaggle-dr, .*medmnist has none"
    ):
        DataConfig(spec="medmnist:x", columns="image=a")


def test_an_index_csv_names_patients_by_path(tmp_path, png):
    """Oracle: the same name at two sites is two people; the row of one says nothing of the other."""
    for shade, name in enumerate(("north/ill/1", "north/well/2", "south/ill/1", "south/well/3")):
        png(tmp_path / f"{name}.png", np.full((4, 4), shade, dtype=np.uint8))
    (tmp_path / "index.csv").write_text(
        "image,patient\nnorth/ill/1.png,anna\nsouth/ill/1,otto\nsouth/ill/9,eva\n"
    )
    source = open_image_folder(tmp_path)
    assert [one.patient for one in source.examples] == ["anna", "north/2", "otto", "south/3"]
    assert "1 of 3 rows of index.csv name no image that is used" in source.notes


def test_lines_are_those_of_the_file(tmp_path):
    (tmp_path / "a.csv").write_text('image\n\n"b\nc"\nd\n')
    assert [row[LINE] for row in read_columns(tmp_path / "a.csv", ("image",))] == ["4", "5"]
