// Attention of selected rows: they read what other instructions stored, and store nothing themselves.
#include "executor.h"

namespace tokenworks::cpu {

void Executor::find_selected(const Step& step) {
    SelectedRows& found = selected_;
    found.positions.clear();
    found.ends.clear();
    found.starts.clear();
    found.tables.clear();
    int sequence = 0;
    for (int r = 0; r < step.selected; r++) {
        const int row = step.logit_rows[r];
        const bool follows = r && row == step.logit_rows[r - 1] + 1 && row < step.row_starts[sequence + 1];
        while (step.row_starts[sequence + 1] <= row) sequence++;
        if (!follows) {
            const int32_t* table = step.block_tables + int64_t{sequence} * step.table_width;
            found.starts.push_back(r);
            found.tables.insert(found.tables.end(), table, table + step.table_width);
        }
        found.positions.push_back(step.positions[row]);
        if (step.ends) found.ends.push_back(step.ends[row]);
    }
    found.starts.push_back(step.selected);
    found.step = step;
    found.step.tokens = step.selected;
    found.step.sequences = static_cast<int>(found.starts.size()) - 1;
    found.step.positions = found.positions.data();
    found.step.row_starts = found.starts.data();
    found.step.block_tables = found.tables.data();
    found.step.ends = step.ends ? found.ends.data() : nullptr;
}

}  // namespace tokenworks::cpu
